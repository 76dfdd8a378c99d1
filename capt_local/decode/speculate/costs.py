"""What it costs to decode, in units of one token of the target by itself.

The costs are a model, not a stop watch: what is drafted decides the shapes of the batches, these
decide the last bits of the logits, and the same question should get the same answer twice. So the
sizes of the models stand for their speed, and what the machine makes of a batch is measured, but
rounded to one of three kinds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from capt_local.decode.speculate.draft import LEADING
from capt_local.decode.stopwatch import CHEAP, FAIR

# Kernels that take four tokens at once need little more than one and a half times what a single
# one takes, and a token that is left over is computed by itself (Q4_0, AVX-512).
_FOUR, _LEFT = 1.6, 0.8
# What models take beside each other on half of the cores, over one after the other on all.
_BESIDE = 0.75
# Tokens of a proxy for one of the target: 1.23 for Llama 2 under Qwen2.
_PIECES = 1.2


@dataclass(slots=True)
class Costs:
    """Of the three models.

    Attributes:
        target: one token of the target by itself, 1 by definition.
        proxies: one token of each of the others, by role.
        more: one token more in a batch, over one by itself.
        fours: whether tokens are computed four at a time.
        beside: whether the others run beside each other.
    """

    proxies: dict[str, float]
    more: float = FAIR
    fours: bool = False
    beside: bool = False

    @classmethod
    def of(
        cls, sizes: Mapping[str, int], leader: str, *, gpu: bool = False, fours: bool = False
    ) -> Costs:
        """From the bytes of the weights, which are what is read for a token.

        Args:
            sizes: by role.
            leader: the role of the target.
            gpu: whether they are on a GPU.
            fours: see the class.
        """
        one = max(sizes[leader], 1)
        proxies = {role: size / one for role, size in sizes.items() if role != leader}
        return cls(proxies, CHEAP if gpu else FAIR, fours)

    def batch(self, count: float) -> float:
        """So many tokens at once (1.2: on average), over one by itself."""
        whole = math.floor(count)
        if whole < count:
            part = count - whole
            return (1 - part) * self.batch(whole) + part * self.batch(whole + 1)
        if not self.fours or whole <= 1:
            return 1.0 + self.more * (whole - 1) if whole else 0.0
        groups, left = divmod(whole, 4)
        return groups * _FOUR + min(left * _LEFT, _FOUR)

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
        cost = sum(proxies.values()) * self.batch(count)
        return cost * _BESIDE if self.beside and len(proxies) > 1 else cost

    @property
    def step(self) -> float:
        """One token step by step."""
        return 1.0 + self._others(self.proxies, _PIECES)
