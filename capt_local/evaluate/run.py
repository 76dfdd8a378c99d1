"""Runs tasks under methods: one item at a time, under every method in turn, on the same models.

The caches are emptied between two methods, so that a result depends on nothing that came before:
a run that was resumed gives what one that was not would have given, and times can be compared.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import msgspec

from capt_local.decoding.answers import Choosing
from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.step import FinishReason
from capt_local.errors import (
    Cancelled,
    CaptError,
    ContextOverflow,
    MemoryShortage,
    NumericalError,
    UsageError,
)
from capt_local.evaluate.items import Item, Kind, Measure, joined_labels
from capt_local.evaluate.metrics import Outcome, judge, judge_prose, library
from capt_local.evaluate.styles import YES_NO, Style, vote
from capt_local.evaluate.tasks import Task
from capt_local.prompting.messages import Message
from capt_local.runtime import Runtime

# Why an item failed, as it stands in journals and tables.
DOES_NOT_FIT = "does not fit"
REFUSED = "refused"
NOT_FINITE = "not finite"
MODEL = "model error"
# These would fail again in the same way; the others are tried again when a run is resumed.
LASTING = frozenset({DOES_NOT_FIT, REFUSED})


@dataclass(frozen=True, slots=True)
class Result:
    """One item under one method; holds no text.

    Attributes:
        task: name of the task.
        method: name of the method.
        item: id of the item.
        outcome: the figures; None when the item failed.
        failed: why there is no outcome; "" when there is one.
        tokens: of the answers, of the choices that were weighed, or of the text, in the leading
            model's tokens; 0 where a choice is constrained.
        decoded: tokens that all models together have decoded for it, prompts included.
        seconds: all models and all samples.
        cut: whether the input was cut on request.
        unfinished: answers that were ended by the limit on their length.
    """

    task: str
    method: str
    item: str
    outcome: Outcome | None = None
    failed: str = ""
    tokens: int = 0
    decoded: int = 0
    seconds: float = 0.0
    cut: bool = False
    unfinished: int = 0

    def __post_init__(self) -> None:
        """Refuses a result that is neither an outcome nor a failure."""
        if (self.outcome is None) != bool(self.failed):
            raise UsageError("A result is either an outcome or a failure.")

    @property
    def place(self) -> tuple[str, str, str]:
        """Task, method and item: there is one result for each."""
        return self.task, self.method, self.item

    def as_object(self) -> dict[str, Any]:
        """For a line of the journal."""
        line = {name: getattr(self, name) for name in _ResultLine.__struct_fields__[:9]}
        if self.outcome is not None:
            line["values"] = dict(self.outcome.values)
            line["predicted"] = self.outcome.predicted
            line["expected"] = self.outcome.expected
        return line

    @classmethod
    def from_object(cls, value: Any) -> Result:
        """Reads a line of the journal.

        Raises:
            ValueError: it is not one.
        """
        try:
            line = msgspec.convert(value, _ResultLine)
            outcome = None
            if line.values is not None:
                outcome = Outcome(line.values, line.predicted, line.expected)
            plain = {name: getattr(line, name) for name in _ResultLine.__struct_fields__[:9]}
            return cls(**plain, outcome=outcome)
        except UsageError as error:
            raise ValueError("figures that make no sense") from error


_Place = Annotated[int, msgspec.Meta(ge=0)]


class _ResultLine(msgspec.Struct, forbid_unknown_fields=True):
    """A result as a line of the journal."""

    task: str
    method: str
    item: str
    failed: str
    tokens: int
    decoded: int
    seconds: float
    cut: bool
    unfinished: int
    values: dict[str, float] | None = None
    predicted: tuple[_Place, ...] = ()
    expected: tuple[_Place, ...] = ()


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
class TaskRun:
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

    def choice_texts(self, item: Item, *, raw: bool) -> tuple[str, ...]:
        """The choices of an item as an answer says them; text goes on with a space."""
        assert self.style is not None, "prose is not asked"
        said = self.style.choice_texts(item, self.task)
        return tuple(f" {choice}" for choice in said) if raw else said


@dataclass(frozen=True, slots=True)
class EvalPlan:
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

    def check(self, runs: Sequence[TaskRun]) -> None:
        """Whether the runs can be run like this.

        Raises:
            UsageError: two tasks have one name, samples would all be the same, or a style reads
                answers that would not be written.
        """
        names = [task_run.task.name for task_run in runs]
        for number, name in enumerate(names, 1):
            if name in names[: number - 1]:
                raise UsageError(
                    f"Tasks {names.index(name) + 1} and {number} have the same name; "
                    "run them one after the other, or rename one."
                )
        for task_run in runs:
            if task_run.style is None or task_run.task.kind is not Kind.CLASSIFICATION:
                continue
            several = task_run.style.samples > 1
            if self.choice_of(task_run) is not ChoiceBy.FREE and task_run.style.reads_text:
                raise UsageError(
                    "Several samples, and answers that are read behind a marker, are texts: they "
                    "need --choice free."
                )
            if several and not self._temperature(task_run.style):
                raise UsageError(
                    "Several samples at temperature 0 are all the same: give --temp, such as 0.7."
                )

    def choice_of(self, task_run: TaskRun) -> ChoiceBy:
        """How the answer to a classification is found; what else is run makes no difference."""
        free = task_run.style is not None and task_run.style.reads_text
        return self.choice or (ChoiceBy.FREE if free else ChoiceBy.LIKELIHOOD)

    def options(self, task_run: TaskRun, method: str, draw: int = 0) -> GenerateOptions:
        """How one answer is made.

        Args:
            task_run: that is asked.
            method: by its name.
            draw: number of the sample; each has a seed of its own.
        """
        options = self.methods[method]
        style = task_run.style.max_tokens if task_run.style is not None else None
        sample = dataclasses.replace(
            options.sample,
            seed=options.sample.seed + draw,
            temperature=self._temperature(task_run.style),
        )
        longest = self.max_tokens or style or task_run.task.max_tokens
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


Cancel = Callable[[], bool]
_HOW = {
    ChoiceBy.LIKELIHOOD: Choosing.LIKELIHOOD,
    ChoiceBy.PER_BYTE: Choosing.PER_BYTE,
    ChoiceBy.CONSTRAINED: Choosing.CONSTRAINED,
}


@dataclass(frozen=True, slots=True)
class Finished:
    """An item that is done under a method.

    Attributes:
        result: figures, no text.
        answers: what was written; empty for prose and where choices are weighed.
        said: what was read from it, or the choice; None where that is nothing.
        logps: of the choices, in nats, where these are weighed.
        problem: the line that tells why it failed; it holds no text of the item.
    """

    result: Result
    answers: tuple[str, ...] = ()
    said: str | None = None
    logps: tuple[float, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one way of answering gives."""

    outcome: Outcome
    tokens: int = 0
    answers: tuple[str, ...] = ()
    said: str | None = None
    logps: tuple[float, ...] = ()
    unfinished: int = 0


def run(
    runtime: Runtime,
    runs: Sequence[TaskRun],
    plan: EvalPlan,
    *,
    done: Collection[tuple[str, str, str]] = (),
    cancel: Cancel = lambda: False,
) -> Iterator[Finished]:
    """Runs every item of every task_run under every method.

    Args:
        runtime: with the models that the methods need.
        runs: see `TaskRun`.
        plan: see `EvalPlan`.
        done: places (task, method, item) of results that are there already.
        cancel: asked at every token; true ends the run, and what is half done is dropped.

    Yields:
        Each item under each method as it is done. An error of one item is its result.

    Raises:
        MemoryShortage: the models do not fit any more.
    """
    for task_run in runs:
        for item in task_run.task.items:
            for method in plan.methods:
                if (task_run.task.name, method, item.id) in done:
                    continue
                try:
                    if cancel():
                        return
                    yield _finished(runtime, task_run, item, method, plan, cancel)
                except Cancelled:
                    return


def _finished(
    runtime: Runtime, task_run: TaskRun, item: Item, method: str, plan: EvalPlan, cancel: Cancel
) -> Finished:
    runtime.forget()
    before, started = sum(runtime.decoded().values()), time.perf_counter()
    found, reason, problem = None, "", ""
    try:
        found = _answered(runtime, task_run, item, method, plan, cancel)
    except (Cancelled, MemoryShortage):
        raise
    except CaptError as error:
        reason, problem = _reason(error), str(error)
    result = Result(
        task=task_run.task.name,
        method=method,
        item=item.id,
        outcome=found.outcome if found else None,
        failed=reason,
        tokens=found.tokens if found else 0,
        decoded=sum(runtime.decoded().values()) - before,
        seconds=time.perf_counter() - started,
        cut=item.id in task_run.cut,
        unfinished=found.unfinished if found else 0,
    )
    if found is None:
        return Finished(result, problem=problem)
    return Finished(result, found.answers, found.said, found.logps)


def _reason(error: CaptError) -> str:
    """Why an item failed, in the words of tables."""
    if isinstance(error, ContextOverflow):
        return DOES_NOT_FIT
    if isinstance(error, NumericalError):
        return NOT_FINITE
    return REFUSED if isinstance(error, UsageError) else MODEL


def _answered(
    runtime: Runtime, task_run: TaskRun, item: Item, method: str, plan: EvalPlan, cancel: Cancel
) -> _Answer:
    if task_run.task.kind is Kind.PERPLEXITY:
        score = runtime.score(item.input.encode(), plan.options(task_run, method), cancel=cancel)
        return _Answer(judge_prose(score.nats, score.size), score.tokens)
    if task_run.task.questions:
        return _asked_each(runtime, task_run, item, plan.options(task_run, method), plan, cancel)
    if task_run.task.kind is Kind.CLASSIFICATION and plan.choice_of(task_run) is not ChoiceBy.FREE:
        return _chosen(runtime, task_run, item, plan.options(task_run, method), plan, cancel)
    return _written(runtime, task_run, item, method, plan, cancel)


def _chosen(
    runtime: Runtime,
    task_run: TaskRun,
    item: Item,
    options: GenerateOptions,
    plan: EvalPlan,
    cancel: Cancel,
) -> _Answer:
    """A classification by the likelihood of its choices, or by an answer that can only be one."""
    chosen = runtime.choose(
        task_run.prompt(item, raw=plan.raw),
        task_run.choice_texts(item, raw=plan.raw),
        options,
        raw=plan.raw,
        how=_HOW[plan.choice_of(task_run)],
        cancel=cancel,
    )
    said = item.choices[chosen.index]
    return _Answer(
        judge(task_run.task, item, said),
        tokens=sum(score.tokens for score in chosen.scores),
        said=said,
        logps=chosen.logps,
    )


def _asked_each(
    runtime: Runtime,
    task_run: TaskRun,
    item: Item,
    options: GenerateOptions,
    plan: EvalPlan,
    cancel: Cancel,
) -> _Answer:
    """Labels by a yes/no question each, answered by the likelihood of both words."""
    assert task_run.style is not None, "prose is not asked"
    task, named, logps = task_run.task, list[str](), list[float]()
    answers = tuple(f" {answer}" for answer in YES_NO) if plan.raw else YES_NO
    for label in item.choices:
        prompt = task_run.style.question(item, task, label, raw=plan.raw)
        chosen = runtime.choose(
            prompt, answers, options, raw=plan.raw, cancel=cancel, how=Choosing.LIKELIHOOD
        )
        logps += chosen.logps
        if chosen.index == 0:
            named.append(label)
    said = joined_labels(tuple(named), task.no_answer)
    return _Answer(judge(task, item, said), said=said, logps=tuple(logps))


def _written(
    runtime: Runtime, task_run: TaskRun, item: Item, method: str, plan: EvalPlan, cancel: Cancel
) -> _Answer:
    """An answer in the model's words, or what most of several say."""
    assert task_run.style is not None, "prose is not asked"
    prompt = task_run.prompt(item, raw=plan.raw)
    answers, tokens, unfinished = [], 0, 0
    for draw in range(task_run.style.samples):
        options = plan.options(task_run, method, draw)
        generation = runtime.generate(prompt, options, raw=plan.raw, cancel=cancel)
        for _ in generation:
            pass
        if generation.finish is FinishReason.INTERRUPTED:
            raise Cancelled("The run was stopped.")
        answers.append(generation.text)
        tokens += generation.steps_done
        unfinished += generation.finish is FinishReason.LENGTH
    said = vote([task_run.style.read(answer, item, task_run.task) for answer in answers])
    outcome = judge(task_run.task, item, said)
    return _Answer(outcome, tokens, tuple(answers), said, unfinished=unfinished)


_Pair = tuple[str, str]


class Remaining:
    """Counts what is left, and estimates its time from what was done.

    An item is expected to take what the items of its task took under its method so far; where
    none was done yet, what items took on average.

    Args:
        runs: all of them.
        methods: all of them.
        done: results that are there already.

    Attributes:
        total: items times methods.
        done: of these.
    """

    def __init__(
        self, runs: Sequence[TaskRun], methods: Collection[str], done: Sequence[Result] = ()
    ) -> None:
        """Counts the results that are there."""
        self._left = Counter(
            {
                (task_run.task.name, name): len(task_run.task.items)
                for task_run in runs
                for name in methods
            }
        )
        self.total = self._left.total()
        self.done = 0
        self._seconds: Counter[_Pair] = Counter()
        self._counts: Counter[_Pair] = Counter()
        for result in done:
            self.add(result)

    def add(self, result: Result) -> None:
        """Counts one more."""
        pair = result.task, result.method
        self.done += 1
        self._left[pair] -= 1
        self._counts[pair] += 1
        self._seconds[pair] += result.seconds  # type: ignore[assignment]  # Counter adds floats too

    @property
    def share(self) -> float:
        """The part of the work that is done, 0 to 1."""
        return self.done / self.total if self.total else 1.0

    @property
    def seconds(self) -> float | None:
        """Time that is left; None before anything was done."""
        if not self.done:
            return None
        average = sum(self._seconds.values()) / self.done
        return sum(
            count * (self._seconds[pair] / self._counts[pair] if self._counts[pair] else average)
            for pair, count in self._left.items()
        )
