"""Whether modes that must give the same answers do, and what any difference comes from.

Two candidates whose scores lie closer together than the arithmetic of a batch is exact may change
places: llama.cpp sums in another order when it computes several tokens at once. So a difference is
told with the scores of both tokens in both modes, beside what the same arithmetic does to scores
where the answers agree.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from capt_local.decoding.step import Step
from capt_local.evaluate.speed.modes import RuntimeMode
from capt_local.evaluate.speed.taken import Taken
from capt_local.evaluate.speed.turns import Turns

_TOP = 16
# Of two candidates each may shift by as much as was seen elsewhere, in opposite directions; and
# the largest shift of all is hardly among those that were seen.
_MARGIN = 4.0
# The limit comes from the run itself, so a fault that moves all scores would widen it. The most
# that a sum in another order was seen to move a score is 0.061 nats (F16, many at once).
_ROUNDING = 0.1


@dataclass(frozen=True, slots=True)
class Shift:
    """How far the log-probability of the same token after the same text differs, in nats.

    Attributes:
        median: over all steps before the first difference of each answer.
        largest: of them.
        steps: how many.
    """

    median: float
    largest: float
    steps: int


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token that is another one.

    Attributes:
        prompt: its number, from 1.
        step: of the answer, from 0.
        tokens: the reference's, and the mode's; None where that answer had ended.
        reference: log-probabilities of these two tokens in the reference, in nats.
        mode: the same in the mode; None where the answer did not come out so again.
    """

    prompt: int
    step: int
    tokens: tuple[int | None, int | None]
    reference: tuple[float, float] | None = None
    mode: tuple[float, float] | None = None

    @property
    def distance(self) -> float | None:
        """How far the difference of the two scores moved between reference and mode, in nats.

        Where it is known in the reference alone: how far it moved at least, to the other side.
        """
        if self.reference is None:
            return None
        apart = self.reference[0] - self.reference[1]
        return abs(apart if self.mode is None else apart - (self.mode[0] - self.mode[1]))

    def as_object(self, shift: Shift | None) -> dict[str, object]:
        """For a script."""
        return {
            "prompt": self.prompt,
            "step": self.step,
            "tokens": list(self.tokens),
            "scores_reference": None if self.reference is None else list(self.reference),
            "scores_mode": None if self.mode is None else list(self.mode),
            "moved": self.distance,
            "batch_arithmetic": self.explained(shift),
        }

    def explained(self, shift: Shift | None) -> bool | None:
        """Whether the scores moved no further than elsewhere; None if that is not known.

        Where they move further than rounding does on the steps that agree, nothing is explained.
        """
        if self.distance is None or shift is None:
            return None
        return shift.largest <= _ROUNDING and self.distance <= _MARGIN * shift.largest


@dataclass(frozen=True, slots=True)
class Sameness:
    """Answers of one mode beside those of the reference.

    Attributes:
        reference: the name of the mode that is compared with.
        same: answers with the same tokens.
        answers: how many were compared.
        shift: None where no scores are known.
        differences: the first of each answer that differs; empty where that is no question.
    """

    reference: str
    same: int
    answers: int
    shift: Shift | None
    differences: tuple[Difference, ...]

    def as_object(self) -> dict[str, object]:
        """For a script."""
        shift = self.shift
        return {
            "compared_with": self.reference,
            "same_answers": self.same,
            "compared_answers": self.answers,
            "score_shift": None
            if shift is None
            else {"median": shift.median, "largest": shift.largest, "steps": shift.steps},
            "differences": [one.as_object(shift) for one in self.differences],
        }


def sameness(pairs: Iterable[tuple[int, Taken, Taken]], reference: str) -> Sameness:
    """Compares answers of one mode with those of another; scores are looked up by `explain`.

    Args:
        pairs: number of the prompt (from 0), the other's answer and ours.
        reference: the name of the other.
    """
    shifts: list[float] = []
    differences = []
    answers = 0
    for number, theirs, ours in pairs:
        answers += 1
        same = common(theirs, ours)
        shifts += [
            abs(first - second)
            for first, second in zip(theirs.logps[:same], ours.logps[:same], strict=False)
        ]
        if theirs.tokens != ours.tokens:
            tokens = _at(theirs.tokens, same), _at(ours.tokens, same)
            differences.append(Difference(number + 1, same, tokens))
    return Sameness(
        reference=reference,
        same=answers - len(differences),
        answers=answers,
        shift=Shift(statistics.median(shifts), max(shifts), len(shifts)) if shifts else None,
        differences=tuple(differences),
    )


def explain(
    found: Sameness, turns: Turns, mode: RuntimeMode | None, reference: RuntimeMode
) -> Sameness:
    """Looks up the scores of both tokens of every difference, in answers that are made again.

    Args:
        found: what differs.
        turns: with the prompts.
        mode: that gave the other answers; None: only the reference is asked again.
        reference: that gave the answers which were expected.
    """
    questions = {one.number + 1: one.question for one in turns.rounds}
    looked = []
    for one in found.differences:
        first, second = one.tokens
        question = questions[one.prompt]
        scores: list[tuple[float, float] | None] = [None, None]
        if first is not None and second is not None:
            for place, (each, token) in enumerate(((reference, first), (mode, second))):
                again = each.step(question, one.step, _TOP) if each is not None else None
                if again is not None and again[1].token == token:
                    scores[place] = _scores(again[1], first, second)
        looked.append(Difference(one.prompt, one.step, one.tokens, scores[0], scores[1]))
    return Sameness(found.reference, found.same, found.answers, found.shift, tuple(looked))


def common(first: Taken, second: Taken) -> int:
    """How many tokens two answers have in common at their beginning."""
    size = min(len(first.tokens), len(second.tokens))
    return next((i for i in range(size) if first.tokens[i] != second.tokens[i]), size)


def _at(tokens: Sequence[int], place: int) -> int | None:
    return tokens[place] if place < len(tokens) else None


def _scores(step: Step, first: int, second: int) -> tuple[float, float] | None:
    known = {choice.token: choice.logp for choice in step.top}
    if first not in known or second not in known:
        return None
    return known[first], known[second]
