"""Modes that take turns on the same prompts, so that the drift of a machine cancels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from capt_local.errors import ContextOverflow, UsageError
from capt_local.evaluate.speed.questions import Question
from capt_local.evaluate.speed.taken import Mode, Taken


@dataclass(frozen=True, slots=True)
class Round:
    """One prompt in all modes.

    Attributes:
        number: of the prompt, from 0.
        question: the prompt.
        taken: by the name of the mode.
    """

    number: int
    question: Question
    taken: Mapping[str, Taken]


@dataclass(slots=True)
class Turns:
    """What all prompts took.

    Attributes:
        rounds: prompts that fit into all modes.
        too_long: numbers of the prompts that do not fit, from 0.
    """

    rounds: list[Round] = field(default_factory=list)
    too_long: list[int] = field(default_factory=list)

    def of(self, name: str) -> list[Taken]:
        """What one mode took, by prompt."""
        return [each.taken[name] for each in self.rounds if name in each.taken]

    def sizes(self) -> dict[str, set[int]]:
        """Sizes of the batches of all answers, by role."""
        found: dict[str, set[int]] = {}
        for each in self.rounds:
            for taken in each.taken.values():
                for role, sizes in taken.sizes.items():
                    found.setdefault(role, set()).update(sizes)
        return found

    def pairs(self, reference: str, name: str) -> Iterator[tuple[int, Taken, Taken]]:
        """Number of the prompt, and the answers of two modes."""
        for each in self.rounds:
            yield each.number, each.taken[reference], each.taken[name]


def take_turns(
    modes: Mapping[str, Mode],
    questions: Sequence[Question],
    progress: Callable[[float], None] = lambda _: None,
    after: Callable[[Round], None] = lambda _: None,
) -> Turns:
    """Answers every prompt in every mode; the next prompt begins with another mode.

    Args:
        modes: by their names.
        questions: at least one.
        progress: called with the part that is done.
        after: called with each prompt that all modes have answered.

    Returns:
        What it took. The first prompt is answered once more before everything, unmeasured.

    Raises:
        UsageError: no prompt fits.
        Cancelled: the user stopped it.
    """
    turns, names = Turns(), list(modes)
    told = _Told((len(questions) + 1) * len(names), progress)
    warm = False
    for number, question in enumerate(questions):
        shift = number % len(names)
        order = [*names[shift:], *names[:shift]]
        try:
            if not warm:
                _answers(modes, names, question, told)
                warm = True
            taken = _answers(modes, order, question, told)
        except ContextOverflow:
            turns.too_long.append(number)
        else:
            turns.rounds.append(Round(number, question, {name: taken[name] for name in names}))
            after(turns.rounds[-1])
    if not turns.rounds:
        raise UsageError("No prompt fits into the context; a larger --ctx-size may help.")
    return turns


class _Told:
    """Counts answers, and tells the part that is done."""

    def __init__(self, total: int, progress: Callable[[float], None]) -> None:
        self._total = total
        self._progress = progress
        self._done = 0

    def one(self) -> None:
        """One answer more."""
        self._done += 1
        self._progress(self._done / self._total)


def _answers(
    modes: Mapping[str, Mode], order: Sequence[str], question: Question, told: _Told
) -> dict[str, Taken]:
    taken = {}
    for name in order:
        taken[name] = modes[name].answer(question)
        told.one()
    return taken
