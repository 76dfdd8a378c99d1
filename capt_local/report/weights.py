"""The weights of the models, in words and as bars."""

from __future__ import annotations

from collections.abc import Sequence

from capt_local.decode.options import Powers
from capt_local.report.view import Bars

# Smaller shares of a mixture are not told.
_LEAST = 0.005


def name(powers: Powers) -> str:
    """One combination: `target`, `expert`, `alpha 0.5`, or `0.25 T + 1 E - 0.25 B`.

    The last one is the score: log-probabilities of target, expert and base times these numbers.
    """
    target, *others = powers
    pairs = list(zip(others[0::2], others[1::2], strict=True))
    if not any(others):
        return "target"
    if target == 1.0 and all(expert == base for expert, base in pairs):
        alphas = [expert for expert, _ in pairs]
        return "alpha " + ", ".join(f"{alpha:g}" for alpha in alphas)
    if len(pairs) == 1 and powers == (0.0, 1.0, 0.0):
        return "expert"
    parts = [f"{target:g} T"] if target else []
    for place, (expert, base) in enumerate(pairs, start=1):
        number = str(place) if len(pairs) > 1 else ""
        parts += [f"+ {expert:g} E{number}"] if expert else []
        parts += [f"{'-' if base > 0 else '+'} {abs(base):g} B{number}"] if base else []
    return " ".join(parts).removeprefix("+ ")


def in_words(weights: Sequence[tuple[Powers, float]]) -> str:
    """All combinations of at least half a percent, the heaviest first; empty without any."""
    if len(weights) == 1:
        return name(weights[0][0])
    shown = sorted((pair for pair in weights if pair[1] >= _LEAST), key=lambda pair: -pair[1])
    return ", ".join(f"{name(powers)} ({100 * share:.0f} %)" for powers, share in shown)


def bars(weights: Sequence[tuple[Powers, float]]) -> Bars | None:
    """The share of each combination of at least half a percent.

    Fixed weights are one bar, a method without any has none.
    """
    title = "Weights, fixed" if len(weights) == 1 else "Weights, by the prompt"
    rows = tuple((name(powers), share) for powers, share in weights if share >= _LEAST)
    return Bars(title, rows) if rows else None
