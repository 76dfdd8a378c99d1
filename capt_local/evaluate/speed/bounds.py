"""What a mode could reach if only the models took time: what its forwards cost on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from capt_local.evaluate.speed.batches import BatchCost
from capt_local.evaluate.speed.figures import Figures


@dataclass(frozen=True, slots=True)
class Bound:
    """The price of one token of an answer.

    Attributes:
        seconds: of each model, by role: forwards a token, times what a forward of so many tokens
            takes.
        ratio: the speed that this leaves, over that of the target alone.
    """

    seconds: Mapping[str, float]
    ratio: float

    def as_object(self) -> dict[str, object]:
        """For a script."""
        return {
            "ratio": self.ratio,
            "ms_per_token": {role: 1000 * each for role, each in self.seconds.items()},
        }


def bound(figures: Figures, costs: Mapping[str, BatchCost]) -> Bound | None:
    """What bounds the speed of a mode; None where nothing was decoded or measured."""
    seconds = {}
    for role, passes in figures.passes.items():
        if role in costs and passes:
            size = figures.decoded.get(role, passes) / passes
            seconds[role] = passes * _seconds(costs[role], size)
    total = sum(seconds.values())
    if not total or "target" not in costs:
        return None
    return Bound(seconds, costs["target"].one / total)


def _seconds(cost: BatchCost, size: float) -> float:
    """Time of a batch of so many tokens, between those that were measured."""
    sizes = sorted(cost.relative)
    return float(cost.one * np.interp(size, sizes, [cost.relative[each] for each in sizes]))
