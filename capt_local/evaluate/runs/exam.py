"""What an evaluation runs: tasks with the style that asks them, and how answers are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from capt_local.decoding.options import GenerateOptions
from capt_local.errors import UsageError
from capt_local.evaluate.extra import library
from capt_local.evaluate.tasks.items import Item, Kind, Measure
from capt_local.evaluate.tasks.styles import Style
from capt_local.evaluate.tasks.task import Task
from capt_local.prompting.messages import Message


class ChoiceBy(StrEnum):
    """How the answer to a classification is found.

    The likelihood is what the model believes, given that it answers with one of the choices; the
    question lists them, so no other wording takes a share of it. Per byte, long choices win over
    short ones: "maybe" over "no" at a lower probability.
    """

    LIKELIHOOD = "likelihood"  # the choice that is likeliest as a whole
    PER_BYTE = "likelihood-per-byte"  # the choice with the largest log-likelihood per byte
    CONSTRAINED = "constrained"  # greedy decoding that can say nothing but a choice
    FREE = "free"  # an answer in free words, read by the style


@dataclass(frozen=True, slots=True)
class Exam:
    """A task and how it is asked.

    Attributes:
        task: its items.
        style: None for prose, which is not asked.
        cut: ids of the items whose input was cut on request.
    """

    task: Task
    style: Style | None
    cut: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Finds out now what could go wrong with an item in the middle of a run.

        Raises:
            UsageError: the style cannot ask the task, or a library is not installed.
        """
        if (self.style is None) != (self.task.kind is Kind.PERPLEXITY):
            raise UsageError("Prose is not asked in a style, and everything else is.")
        if self.task.measure in (Measure.CHOICE, Measure.LABELS):
            library("sklearn.metrics")
        elif self.task.measure is Measure.ROUGE:
            library("rouge_score.rouge_scorer")
        if self.style is not None:
            for item in self.task.items:
                self.style.messages(item, self.task)

    def prompt(self, item: Item, *, raw: bool) -> str | list[Message]:
        """What a model is asked: a conversation, or one text to go on with."""
        assert self.style is not None, "prose is not asked"
        if raw:
            return self.style.text(item, self.task)
        return self.style.messages(item, self.task)

    def spoken(self, item: Item, *, raw: bool) -> tuple[str, ...]:
        """The choices of an item as an answer says them; text goes on with a space."""
        assert self.style is not None, "prose is not asked"
        said = self.style.spoken(item, self.task)
        return tuple(f" {choice}" for choice in said) if raw else said


@dataclass(frozen=True, slots=True)
class Plan:
    """How answers are made.

    Attributes:
        methods: how each of them answers, by its name; the length of answers is the task's.
        choice: how the answer to a classification is found; None: as its style needs it.
        raw: texts to go on with instead of messages, for models without a chat template.
        max_tokens: the longest answer; None: the style's, else the task's.
        temperature: of answers; None: the style's, else 0.
    """

    methods: Mapping[str, GenerateOptions]
    choice: ChoiceBy | None = None
    raw: bool = False
    max_tokens: int | None = None
    temperature: float | None = None

    def check(self, exams: Sequence[Exam]) -> None:
        """Whether the exams can be run like this.

        Raises:
            UsageError: two tasks have one name, samples would all be the same, or a style reads
                answers that would not be written.
        """
        names = [exam.task.name for exam in exams]
        for number, name in enumerate(names, 1):
            if name in names[: number - 1]:
                raise UsageError(
                    f"Tasks {names.index(name) + 1} and {number} have the same name; "
                    "run them one after the other, or rename one."
                )
        for exam in exams:
            if exam.style is None or exam.task.kind is not Kind.CLASSIFICATION:
                continue
            several = exam.style.samples > 1
            if self.choice_of(exam) is not ChoiceBy.FREE and exam.style.reads_text:
                raise UsageError(
                    "Several samples, and answers that are read behind a marker, are texts: they "
                    "need --choice free."
                )
            if several and not self._temperature(exam.style):
                raise UsageError(
                    "Several samples at temperature 0 are all the same: give --temp, such as 0.7."
                )

    def choice_of(self, exam: Exam) -> ChoiceBy:
        """How the answer to a classification is found; what else is run makes no difference."""
        free = exam.style is not None and exam.style.reads_text
        return self.choice or (ChoiceBy.FREE if free else ChoiceBy.LIKELIHOOD)

    def options(self, exam: Exam, method: str, draw: int = 0) -> GenerateOptions:
        """How one answer is made.

        Args:
            exam: that is asked.
            method: by its name.
            draw: number of the sample; each has a seed of its own.
        """
        options = self.methods[method]
        style = exam.style.max_tokens if exam.style is not None else None
        sample = dataclasses.replace(
            options.sample,
            seed=options.sample.seed + draw,
            temperature=self._temperature(exam.style),
        )
        longest = self.max_tokens or style or exam.task.max_tokens
        return dataclasses.replace(options, max_tokens=longest, sample=sample)

    def _temperature(self, style: Style | None) -> float:
        """What the user asks for, else the style, else 0."""
        if self.temperature is not None:
            return self.temperature
        return style.temperature or 0.0 if style is not None else 0.0


def shortened(task: Task, size: int | None) -> tuple[Task, frozenset[str]]:
    """The task with inputs of at most so many bytes: their beginnings, never a part of a character.

    Args:
        task: any.
        size: bytes of UTF-8; None leaves everything as it is.

    Returns:
        The task, and the ids of the items that were cut.

    Raises:
        UsageError: nothing would be left of an input.
    """
    if size is None:
        return task, frozenset()
    items = [_shortened(item, size) for item in task.items]
    cut = frozenset(
        new.id for new, old in zip(items, task.items, strict=True) if new.input != old.input
    )
    if any(not item.input.strip() for item in items):
        raise UsageError(f"--max-input-bytes {size} leaves nothing of an input; allow more.")
    return dataclasses.replace(task, items=tuple(items)), cut


def _shortened(item: Item, size: int) -> Item:
    data = item.input.encode()
    if len(data) <= size:
        return item
    return dataclasses.replace(item, input=data[:size].decode("utf-8", "ignore"))
