"""Many requests at once, against the same requests one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from capt_local.decoding.many.asks import Ask
from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.step import FinishReason, Step
from capt_local.errors import Cancelled
from capt_local.evaluate.speed.figures import Ratio
from capt_local.evaluate.speed.memory import resident
from capt_local.evaluate.speed.same import Sameness, sameness
from capt_local.evaluate.speed.taken import Taken
from capt_local.evaluate.speed.turns import Round
from capt_local.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Group:
    """Some prompts that were answered side by side.

    Attributes:
        rounds: the same prompts in the other modes.
        seconds: from the first prompt to the last token.
        answers: as many; their own times are not known.
    """

    rounds: Sequence[Round]
    seconds: float
    answers: Sequence[Taken]

    def over(self, name: str) -> float:
        """How much faster this was than one mode, prompts included."""
        one = [each.taken[name] for each in self.rounds]
        return sum((each.prompt_seconds or 0.0) + each.seconds for each in one) / self.seconds


@dataclass(frozen=True, slots=True)
class SideFigures:
    """What answering side by side took. Prompts count: they run beside the answers of others.

    Attributes:
        groups: how many groups of prompts.
        requests: a second.
        rate: tokens of the answers a second.
        tokens: of all answers.
        memory: bytes that the lanes took: their KV caches and buffers.
        ratios: speed over that of each mode, by its name.
        same: answers beside those one at a time; None where that was not run.
    """

    groups: int
    requests: float
    rate: float
    tokens: int
    memory: int = 0
    ratios: Mapping[str, Ratio] = field(default_factory=dict)
    same: Sameness | None = None

    def as_object(self) -> dict[str, object]:
        """For a script; prompts and answers cannot be told apart."""
        return {
            "prefill_tokens_per_s": None,
            "generate_tokens_per_s": None,
            "wall_tokens_per_s": self.rate,
            "requests_per_s": self.requests,
            "groups": self.groups,
            "tokens": self.tokens,
            "lanes_memory_bytes": self.memory,
            **({} if self.same is None else self.same.as_object()),
        }


class SideBySide:
    """Answers prompts side by side, whenever as many as wanted have been answered one by one.

    Args:
        runtime: with all models.
        options: how.
        parallel: requests at once, at least 2.
        cancel: asked meanwhile.

    Attributes:
        groups: what was measured.
        memory: bytes by which this process grew when the lanes were made.
    """

    def __init__(
        self,
        runtime: Runtime,
        options: GenerateOptions,
        parallel: int,
        cancel: Callable[[], bool],
    ) -> None:
        """Allocates nothing yet."""
        self.groups: list[Group] = []
        self.parallel = parallel
        self.memory = 0
        self._runtime = runtime
        self._options = options
        self._cancel = cancel
        self._waiting: list[Round] = []

    def add(self, one: Round) -> None:
        """Takes a prompt that was answered one by one.

        Raises:
            MemoryShortage: so many do not fit at once.
            Cancelled: the user stopped it.
        """
        self._waiting.append(one)
        if len(self._waiting) < self.parallel:
            return
        if not self.groups:
            before = resident()
            self._answer(self._waiting)  # makes the lanes, and its time is not measured
            self.memory = max(0, resident() - before)
        self.groups.append(self._answer(self._waiting))
        self._waiting = []

    def figures(self, names: Sequence[str], reference: str) -> SideFigures | None:
        """What it took; None without a whole group.

        Args:
            names: of the modes that it is compared with.
            reference: the one that has to give the same answers.
        """
        if not self.groups:
            return None
        seconds = sum(group.seconds for group in self.groups)
        answers = [answer for group in self.groups for answer in group.answers]
        tokens = sum(len(answer.tokens) for answer in answers)
        ratios = {
            name: Ratio.of([group.over(name) for group in self.groups])
            for name in names
            if name in self.groups[0].rounds[0].taken
        }
        return SideFigures(
            groups=len(self.groups),
            requests=len(answers) / seconds,
            rate=tokens / seconds,
            tokens=tokens,
            memory=self.memory,
            ratios={name: ratio for name, ratio in ratios.items() if ratio is not None},
            same=sameness(self._pairs(reference), reference) if reference in ratios else None,
        )

    def _pairs(self, reference: str) -> Iterator[tuple[int, Taken, Taken]]:
        for group in self.groups:
            for one, answer in zip(group.rounds, group.answers, strict=True):
                yield one.number, one.taken[reference], answer

    def _answer(self, rounds: Sequence[Round]) -> Group:
        asks = [Ask(one.question.asked, self._options, one.question.raw) for one in rounds]
        self._runtime.forget()
        found: dict[int, Sequence[Step]] = {}
        started = time.perf_counter()
        for answered in self._runtime.generate_many(
            asks, parallel=self.parallel, cancel=self._cancel
        ):
            if answered.error is not None:
                raise answered.error
            found[answered.index] = answered.steps
            made = answered.generation
            if made is not None and made.finish is FinishReason.INTERRUPTED:
                raise Cancelled("Stopped on request.")
        seconds = time.perf_counter() - started
        if len(found) < len(asks):
            raise Cancelled("Stopped on request.")
        return Group(tuple(rounds), seconds, [_taken(found[n]) for n in range(len(asks))])


def _taken(steps: Sequence[Step]) -> Taken:
    tokens, logps = [step.token for step in steps], [step.logp for step in steps]
    return Taken(0, None, tuple(tokens), 0.0, tuple(logps))
