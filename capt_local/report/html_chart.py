"""The contrast along an answer as a small chart: paths for an SVG in the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from capt_local.decode.step import Step
from capt_local.report.html_cells import LIMIT, contrasts

_NARROWEST = 40  # tokens; bars of a short answer would look like walls
_HALF = 40  # height of one side of the scale
_TICK = 6  # height of the marks of changed tokens, below the scale


@dataclass(frozen=True, slots=True)
class Chart:
    """Paths, one unit wide for each token.

    Attributes:
        width: in tokens; more than there are where the answer is short.
        height: of the whole.
        zero: where contrast 0 is.
        marks: heights of the lines of the scale.
        above: bars of tokens that the expert finds likelier.
        below: bars of tokens that the base finds likelier.
        changed: marks of the changed tokens.
        beyond: tokens whose contrast is beyond the scale.
        said: the chart in a sentence, for those who cannot see it.
    """

    width: int
    height: int
    zero: int
    marks: tuple[float, ...]
    above: str
    below: str
    changed: str
    beyond: int
    said: str


def chart(steps: Sequence[Step]) -> Chart:
    """The chart of an answer. Contrasts beyond the scale end at its end."""
    known = list(contrasts(steps).items())
    changed = [i for i, step in enumerate(steps) if step.changed]
    return Chart(
        width=max(len(steps), _NARROWEST),
        height=2 * _HALF + 4 + _TICK,
        zero=_HALF,
        marks=tuple(_HALF * (1 + share / 2) for share in (-2, -1, 1, 2)),
        above=_bars((i, value) for i, value in known if value > 0),
        below=_bars((i, value) for i, value in known if value < 0),
        changed="".join(f"M{i}.1 {2 * _HALF + 4}h.8v{_TICK}h-.8z" for i in changed),
        beyond=sum(abs(value) > LIMIT for _, value in known),
        said=_sentence([value for _, value in known], len(changed)),
    )


def _bars(values: Iterable[tuple[int, float]]) -> str:
    heights = ((i, _HALF * min(abs(v), LIMIT) / LIMIT * math.copysign(1, -v)) for i, v in values)
    return "".join(f"M{i}.1 {_HALF}h.8v{height:.1f}h-.8z" for i, height in heights)


def _sentence(values: Sequence[float], changed: int) -> str:
    if not values:
        return "No contrast is known."
    up = sum(value > 0 for value in values)
    return (
        f"Contrast of {len(values)} tokens, from {min(values):+.2f} to {max(values):+.2f} nats: "
        f"{up} above zero, {len(values) - up} at or below. {changed} tokens were changed."
    )
