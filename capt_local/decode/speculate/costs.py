"""What it costs to decode, in units of one token of the target by itself.

The costs are a model, not a stop watch: what is drafted decides the shapes of the batches, these
decide the last bits of the logits, and the same question should get the same answer twice. So the
sizes of the models stand for their speed, and what the machine makes of a batch is measured, but
rounded to one of three kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capt_local.decode.stopwatch import CHEAP, FAIR

# Tokens of a proxy for one of the target: 1.23 for Llama 2 under Qwen2.
_PIECES = 1.2


@dataclass(slots=True)
class Costs:
    """Of the three models.

    Attributes:
        target: one token of the target by itself, 1 by definition.
        proxies: one token of each of the others, by role.
        more: one token more in a batch, over one by itself.
    """

    proxies: Mapping[str, float]
    more: float = FAIR

    @classmethod
    def of(cls, sizes: Mapping[str, int], leader: str, *, gpu: bool = False) -> Costs:
        """From the bytes of the weights, which are what is read for a token.

        Args:
            sizes: by role.
            leader: the role of the target.
            gpu: whether they are on a GPU.
        """
        one = max(sizes[leader], 1)
        proxies = {role: size / one for role, size in sizes.items() if role != leader}
        return cls(proxies, CHEAP if gpu else FAIR)

    def batch(self, count: float) -> float:
        """So many tokens at once, over one by itself; none costs nothing."""
        return 1.0 + self.more * (count - 1.0) if count > 0 else 0.0

    def check(self, drafted: int, leader: str | None) -> float:
        """A draft and one token more through all models, with the making of the draft.

        Args:
            drafted: tokens.
            leader: who decoded them one by one; see `DraftSource.leader`.
        """
        cost = float(drafted) if leader == "target" else self.batch(drafted + 1)
        # The target's own draft leaves its last token unread, so one token less is checked.
        places = drafted if leader == "target" else drafted + 1
        for role, one in self.proxies.items():
            pieces = _PIECES * drafted + 1 if role == leader else self.batch(_PIECES * places)
            cost += one * pieces
        return cost

    @property
    def step(self) -> float:
        """One token step by step."""
        return 1.0 + sum(self.proxies.values()) * self.batch(_PIECES)

    def further(self, leader: str | None) -> float:
        """One token more in a draft."""
        return self.check(2, leader) - self.check(1, leader)
