"""What a mode could reach if only the models took time: what its forwards cost on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capt_local.evaluate.speed.batches import BatchCost
from capt_local.evaluate.speed.figures import Figures


@dataclass(frozen=True, slots=True)
class Bound:
    """The price of one token of an answer.

    Attributes:
        seconds: of each model, by role: forwards of each size a token, times what one of that size
            takes. A mean size would not do: the price goes up in steps, and not evenly.
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
    seconds = {
        role: sum(count * costs[role].seconds(size) for size, count in sizes.items())
        for role, sizes in figures.sizes.items()
        if role in costs and sizes
    }
    total = sum(seconds.values())
    if not total or "target" not in costs:
        return None
    return Bound(seconds, costs["target"].one / total)
