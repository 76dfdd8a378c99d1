"""What it costs to decode, in units of one token of the target by itself.

The costs are a model, not a stop watch: what is drafted decides the shapes of the batches, these
decide the last bits of the logits, and the same question should get the same answer twice. So the
sizes of the models stand for their speed and the kernels for the price of a batch, until both were
measured, and what was measured is rounded coarsely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from capt_local.decoding.speculate.draft import LEADING

# Tokens of a proxy for one of the target: 1.23 for Llama 2 under Qwen2.
_PIECES = 1.2


@dataclass(slots=True)
class Costs:
    """Of the three models.

    Attributes:
        proxies: one token of each of the others, by role; one of the target is 1 by definition.
        price: what a batch of so many tokens costs, in batches of one.
        more: what the further tokens of a batch cost over that.
    """

    proxies: dict[str, float]
    price: Callable[[int], float]
    more: float = 1.0

    @classmethod
    def of(cls, sizes: Mapping[str, int], leader: str, price: Callable[[int], float]) -> Costs:
        """From the bytes of the weights, which are what is read for a token.

        Args:
            sizes: by role.
            leader: the role of the target.
            price: see the class.
        """
        one = max(sizes[leader], 1)
        proxies = {role: size / one for role, size in sizes.items() if role != leader}
        return cls(proxies, price)

    def batch(self, count: float) -> float:
        """So many tokens at once (1.2: on average), over one by itself."""
        whole = math.floor(count)
        if whole < count:
            part = count - whole
            return (1 - part) * self.batch(whole) + part * self.batch(whole + 1)
        return 1.0 + self.more * (self.price(whole) - 1.0) if whole else 0.0

    def check(self, drafted: int, leader: str | None) -> float:
        """A draft and one token more through all models, with the making of the draft.

        Args:
            drafted: tokens.
            leader: who decoded them one by one; see `DraftSource.leader`.
        """
        cost = float(drafted) if leader == LEADING else self.batch(drafted + 1)
        # The leading model's own draft leaves its last token unread, so one token less is checked.
        places = drafted if leader == LEADING else drafted + 1
        checked = {role: one for role, one in self.proxies.items() if role != leader}
        for role in self.proxies.keys() - checked.keys():
            cost += self.proxies[role] * (_PIECES * drafted + 1)
        return cost + self._others(checked, _PIECES * places)

    def _others(self, proxies: Mapping[str, float], count: float) -> float:
        """So many tokens at once through each of some models."""
        return sum(proxies.values()) * self.batch(count)

    @property
    def step(self) -> float:
        """One token step by step."""
        return 1.0 + self._others(self.proxies, _PIECES)
