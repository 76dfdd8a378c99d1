"""The result of a run: figures of all modes, their ratios, and what explains these."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from capt_local.evaluate.speed.batches import BatchCost
from capt_local.evaluate.speed.bounds import Bound, bound
from capt_local.evaluate.speed.figures import Figures, Ratio, figures, ratios
from capt_local.evaluate.speed.modes import RuntimeMode
from capt_local.evaluate.speed.same import Sameness, explain, sameness
from capt_local.evaluate.speed.side import SideBySide, SideFigures
from capt_local.evaluate.speed.taken import Mode
from capt_local.evaluate.speed.turns import Turns

ALONE, STEPS, PLAIN = "target", "exact-steps", "llama"


@dataclass(frozen=True, slots=True)
class SpeedResult:
    """What a run has found.

    Attributes:
        figures: of each mode, by name.
        ratios: by "mode/target" and "mode/exact-steps".
        same: answers beside those that must be the same, by mode.
        costs: of batches, by role.
        prompts: that were answered in all modes.
        prompt_tokens: of the first of them, in the target.
        too_long: numbers of prompts that do not fit, from 1.
        side: of answering side by side, by its name.
    """

    figures: Mapping[str, Figures]
    ratios: Mapping[str, Ratio]
    same: Mapping[str, Sameness]
    costs: Mapping[str, BatchCost] = field(default_factory=dict)
    prompts: int = 0
    prompt_tokens: int = 0
    too_long: Sequence[int] = ()
    side: Mapping[str, SideFigures] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        turns: Turns,
        modes: Mapping[str, Mode],
        costs: Mapping[str, BatchCost],
        *,
        chosen: bool = True,
        side: SideBySide | None = None,
    ) -> SpeedResult:
        """From what all answers took; makes answers again where they differ.

        Args:
            turns: of these modes.
            modes: by name.
            costs: of batches.
            chosen: whether the modes chose what they said, so that it can be compared.
            side: the same prompts side by side.
        """
        return cls(
            figures={name: figures(turns.of(name)) for name in modes},
            ratios=_ratios(turns, modes),
            same=_same(turns, modes) if chosen else {},
            costs=costs,
            prompts=len(turns.rounds),
            prompt_tokens=next(iter(turns.rounds[0].taken.values())).prompt_tokens,
            too_long=[number + 1 for number in turns.too_long],
            side=_side(side, turns, modes),
        )

    def bound(self, name: str) -> Bound | None:
        """What bounds the speed of a mode."""
        return bound(self.figures[name], self.costs)

    def all_ratios(self) -> dict[str, Ratio]:
        """By "mode/other"."""
        side = {
            f"{name}/{other}": ratio
            for name, each in self.side.items()
            for other, ratio in each.ratios.items()
        }
        return {**self.ratios, **side}

    def as_object(self) -> dict[str, object]:
        """For a script."""
        modes = {name: self._mode(name) for name in self.figures}
        ratios = self.all_ratios()
        return {
            "modes": modes | {name: each.as_object() for name, each in self.side.items()},
            "ratios": {name: ratio.median for name, ratio in ratios.items()},
            "ratio_spread": {name: ratio.as_object() for name, ratio in ratios.items()},
            "batches": {role: cost.as_object() for role, cost in self.costs.items()},
            "prompts": {"measured": self.prompts, "too_long": list(self.too_long)},
        }

    def _mode(self, name: str) -> dict[str, object]:
        limit = self.bound(name)
        same = self.same.get(name)
        return {
            **self.figures[name].as_object(),
            "bound": None if limit is None else limit.as_object(),
            **({} if same is None else same.as_object()),
        }


def _ratios(turns: Turns, modes: Mapping[str, Mode]) -> dict[str, Ratio]:
    """Over the target alone, and of what drafts over step by step."""
    drafting = [name for name in modes if name not in (ALONE, PLAIN)]
    return ratios(turns, list(modes), ALONE) | ratios(turns, drafting, STEPS)


def _side(
    side: SideBySide | None, turns: Turns, modes: Mapping[str, Mode]
) -> dict[str, SideFigures]:
    """Over the target alone, and over the three one at a time."""
    if side is None:
        return {}
    names = [name for name in modes if name != PLAIN]
    found = side.figures(names, STEPS)
    if found is None:
        return {}
    steps = modes.get(STEPS)
    if found.same is not None and isinstance(steps, RuntimeMode):
        found = dataclasses.replace(found, same=explain(found.same, turns, None, steps))
    return {f"parallel-{side.parallel}": found}


def _same(turns: Turns, modes: Mapping[str, Mode]) -> dict[str, Sameness]:
    """Step by step is what all others of ours must be equal to; `Llama` to the target alone."""
    found = {}
    for name, mode in modes.items():
        reference = ALONE if name == PLAIN else STEPS
        if name == reference or reference not in modes:
            continue
        found[name] = sameness(turns.pairs(reference, name), reference)
        other = modes[reference]
        if name == ALONE:  # another answer wherever the expert had something to say
            found[name] = dataclasses.replace(found[name], shift=None, differences=())
        elif isinstance(mode, RuntimeMode) and isinstance(other, RuntimeMode):
            found[name] = explain(found[name], turns, mode, other)
    return found
