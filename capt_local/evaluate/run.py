"""Runs tasks under methods: one item at a time, under every method in turn, on the same models.

The caches are emptied between two methods, so that a result depends on nothing that came before:
a run that was resumed gives what one that was not would have given, and times can be compared.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.scoring import Choosing
from capt_local.decoding.step import FinishReason
from capt_local.errors import (
    Cancelled,
    CaptError,
    ContextOverflow,
    MemoryShortage,
    NumericalError,
    UsageError,
)
from capt_local.evaluate import ChoiceBy
from capt_local.evaluate.metrics import Outcome, judge, library
from capt_local.evaluate.prompts import (
    YES_NO,
    Examples,
    label_question,
    messages,
    read_answer,
    text,
)
from capt_local.evaluate.tasks import EvalTask, Item, Kind, Measure, joined_labels
from capt_local.line_file import LineFile
from capt_local.prompting.messages import Message
from capt_local.rerank.candidates import best_of, draw_choices, shares
from capt_local.rerank.scorer import Scorer
from capt_local.runtime import Runtime
from capt_local.strict_json import NotReadable, convert, parse_object

# Why an item failed, as it stands in journals and tables.
DOES_NOT_FIT = "does not fit"
REFUSED = "refused"
NOT_FINITE = "not finite"
MODEL = "model error"
# These would fail again in the same way; the others are tried again when a run is resumed.
LASTING = frozenset({DOES_NOT_FIT, REFUSED})


class Result(msgspec.Struct, frozen=True):
    """One item under one method, as a line of the journal; holds no text.

    Attributes:
        task: name of the task.
        method: name of the method.
        item: id of the item.
        outcome: the figures; None when the item failed.
        failed: why there is no outcome; "" when there is one.
        tokens: of the answer, of the choices that were weighed, or of the text, in the leading
            model's tokens.
        decoded: tokens that all models together have decoded for it, prompts included.
        seconds: all models.
        cut: whether the input was cut on request.
        unfinished: whether the answer was ended by the limit on its length.
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
    unfinished: bool = False

    @property
    def place(self) -> tuple[str, str, str]:
        """Task, method and item: there is one result for each."""
        return self.task, self.method, self.item


@dataclass(frozen=True, slots=True)
class Finished:
    """An item that is done under a method.

    Attributes:
        result: figures, no text.
        answer: what was written; "" for prose and where choices are weighed.
        read: what was read from it, or the choice; None where that is nothing.
        logps: of the choices, in nats, where these are weighed.
        problem: the line that says why it failed; it holds no text of the item.
    """

    result: Result
    answer: str = ""
    read: str | None = None
    logps: tuple[float, ...] = ()
    problem: str = ""


BEST = "+best"
"""Behind the name of a method: the best of several of its answers."""
_HOW = {
    ChoiceBy.LIKELIHOOD: Choosing.LIKELIHOOD,
    ChoiceBy.PER_BYTE: Choosing.PER_BYTE,
}


@dataclass(frozen=True, slots=True)
class TaskRun:
    """A task and the examples before its questions.

    Attributes:
        task: its items.
        examples: to show before each question; None shows none.
        cut: ids of the items whose input was cut on request.
    """

    task: EvalTask
    examples: Examples | None = None
    cut: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Finds out now what could go wrong with an item in the middle of a run.

        Raises:
            UsageError: there are too few examples, or a library is not installed.
        """
        if self.task.measure in (Measure.CHOICE, Measure.LABELS):
            library("sklearn.metrics")
        elif self.task.measure is Measure.ROUGE:
            library("rouge_score.rouge_scorer")
        if self.examples is not None:
            if self.task.questions or self.task.kind is Kind.PERPLEXITY:
                raise UsageError("Prose, and a question for each label, have no examples.")
            for item in self.task.items:
                self.examples.of(item, self.task)

    def prompt(self, item: Item, *, raw: bool) -> str | list[Message]:
        """What a model reads: a conversation, or one text to go on with."""
        return (text if raw else messages)(item, self.task, self.examples)


@dataclass(frozen=True, slots=True)
class EvalPlan:
    """How answers are made.

    Attributes:
        methods: how each of them answers, by its name; the length of answers is the task's.
        choice: how the answer to a classification is found.
        raw: texts to go on with instead of messages, for models without a chat template.
        max_tokens: the longest answer; None: the task's.
        best_of: answers that a method draws whose name ends in `BEST`; the best of them counts.
        scorer: ranks them; None: the majority, of texts the likeliest.
    """

    methods: Mapping[str, GenerateOptions]
    choice: ChoiceBy = ChoiceBy.LIKELIHOOD
    raw: bool = False
    max_tokens: int | None = None
    best_of: int = 1
    scorer: Scorer | None = None

    def check(self, runs: Sequence[TaskRun]) -> None:
        """Whether the runs can be run like this.

        Raises:
            UsageError: two tasks have one name.
        """
        names = [task_run.task.name for task_run in runs]
        for number, name in enumerate(names, 1):
            if name in names[: number - 1]:
                raise UsageError(
                    f"Tasks {names.index(name) + 1} and {number} have the same name; "
                    "run them one after the other, or rename one."
                )

    def options(self, task: EvalTask, method: str) -> GenerateOptions:
        """How the answers to a task are made by a method."""
        longest = self.max_tokens or task.max_tokens
        options = dataclasses.replace(self.methods[method], max_tokens=longest)
        if task.measure is not Measure.FIELDS:
            options = dataclasses.replace(options, structure=None)
        return options


def run(
    runtime: Runtime,
    runs: Sequence[TaskRun],
    plan: EvalPlan,
    *,
    done: Collection[tuple[str, str, str]] = (),
    cancel: Callable[[], bool] = lambda: False,
) -> Iterator[Finished]:
    """Runs every item of every task under every method.

    Args:
        runtime: with the models that the methods need.
        runs: see `TaskRun`.
        plan: see `EvalPlan`.
        done: places (task, method, item) of results that are there already.
        cancel: called at every token; true ends the run, and what is half done is dropped.

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
    runtime: Runtime,
    task_run: TaskRun,
    item: Item,
    method: str,
    plan: EvalPlan,
    cancel: Callable[[], bool],
) -> Finished:
    runtime.forget()
    before, started = sum(runtime.decoded().values()), time.perf_counter()
    result = Result(task_run.task.name, method, item.id, cut=item.id in task_run.cut)
    try:
        found = _answered(runtime, task_run, item, result, plan, cancel)
    except (Cancelled, MemoryShortage):
        raise
    except CaptError as error:
        reason = REFUSED if isinstance(error, UsageError) else MODEL
        if isinstance(error, ContextOverflow):
            reason = DOES_NOT_FIT
        elif isinstance(error, NumericalError):
            reason = NOT_FINITE
        found = Finished(msgspec.structs.replace(result, failed=reason), problem=str(error))
    result = msgspec.structs.replace(
        found.result,
        decoded=sum(runtime.decoded().values()) - before,
        seconds=time.perf_counter() - started,
    )
    return dataclasses.replace(found, result=result)


def _answered(
    runtime: Runtime,
    task_run: TaskRun,
    item: Item,
    result: Result,
    plan: EvalPlan,
    cancel: Callable[[], bool],
) -> Finished:
    task, raw = task_run.task, plan.raw
    options = plan.options(task, result.method)

    def done(outcome: Outcome, tokens: int = 0, *, unfinished: bool = False) -> Result:
        return msgspec.structs.replace(
            result, outcome=outcome, tokens=tokens, unfinished=unfinished
        )

    if task.kind is Kind.PERPLEXITY:
        score = runtime.score(item.input.encode(), options, cancel=cancel)
        if not math.isfinite(score.nats):
            raise NumericalError("The text has probability 0 under this method.")
        figures = {"nats": score.nats, "bytes": float(score.size)}
        return Finished(done(Outcome(figures), score.tokens))
    if task.questions:  # labels by a yes/no question each
        named, logps = [], list[float]()
        answers = tuple(f" {answer}" for answer in YES_NO) if raw else YES_NO
        for label in item.choices:
            question = label_question(item, task, label, raw=raw)
            chosen = runtime.choose(
                question, answers, options, raw=raw, cancel=cancel, how=Choosing.LIKELIHOOD
            )
            logps += chosen.logps
            named += [label] if chosen.index == 0 else []
        read: str | None = joined_labels(tuple(named), task.no_answer)
        return Finished(done(judge(task, item, read)), read=read, logps=tuple(logps))
    prompt = task_run.prompt(item, raw=raw)
    if result.method.endswith(BEST):
        read, written, tokens = _best(runtime, task, item, prompt, options, plan, cancel)
        return Finished(done(judge(task, item, read), tokens), written, read)
    if task.kind is Kind.CLASSIFICATION and plan.choice is not ChoiceBy.FREE:
        choices = tuple(f" {choice}" for choice in item.choices) if raw else item.choices
        how = _HOW[plan.choice]
        chosen = runtime.choose(prompt, choices, options, raw=raw, how=how, cancel=cancel)
        read = item.choices[chosen.index]
        tokens = sum(score.tokens for score in chosen.scores)
        return Finished(done(judge(task, item, read), tokens), read=read, logps=chosen.logps)
    generation = runtime.generate(prompt, options, raw=raw, cancel=cancel)
    for _ in generation:
        pass
    if generation.finish is FinishReason.INTERRUPTED:
        raise Cancelled("The run was stopped.")
    read = read_answer(generation.text, item, task)
    unfinished = generation.finish is FinishReason.LENGTH
    outcome = judge(task, item, read)
    return Finished(
        done(outcome, generation.steps_done, unfinished=unfinished), generation.text, read
    )


def _best(
    runtime: Runtime,
    task: EvalTask,
    item: Item,
    prompt: str | list[Message],
    options: GenerateOptions,
    plan: EvalPlan,
    cancel: Callable[[], bool],
) -> tuple[str | None, str, int]:
    """What the best of several answers says, the answer itself, and the tokens of all of them.

    Choices are drawn by their likelihood, which is the same as writing them where no other answer
    can be written.
    """
    question = f"{item.instruction}\n\n{item.input}".strip()
    if task.kind is Kind.CLASSIFICATION and plan.choice is not ChoiceBy.FREE:
        choices = tuple(f" {choice}" for choice in item.choices) if plan.raw else item.choices
        chosen = runtime.choose(prompt, choices, options, raw=plan.raw, cancel=cancel)
        seed = options.sample.seed + zlib.crc32(item.id.encode())
        drawn = draw_choices(chosen.logps, plan.best_of, options.sample.temperature, seed)
        said = [item.choices[place] for place in drawn]
        scores = plan.scorer.scores(question, said) if plan.scorer else shares(said)
        return said[int(np.argmax(scores))], "", sum(score.tokens for score in chosen.scores)
    found = best_of(
        runtime, prompt, options, plan.best_of, plan.scorer, raw=plan.raw, cancel=cancel,
        question=question,
    ).candidates  # fmt: skip
    texts = [one.generation.text for one in found]
    said_texts = [read_answer(text, item, task) for text in texts]
    best = 0
    if plan.scorer is None and task.kind is Kind.CLASSIFICATION:
        best = int(np.argmax(shares(said_texts)))
    return said_texts[best], texts[best], sum(one.generation.steps_done for one in found)


_MARK, _VERSION = "capt_local_eval", 2
_RESULTS = "The results file (--results)"
_SAMPLES = "The file of answers (--log-samples)"


class ResultsFile:
    """The journal of results: each is on the disk before the next item begins.

    The first line is a fingerprint of everything that decides a result, so that only the same run
    goes on with the file; the others hold ids, places of choices and figures, no text.

    Attributes:
        done: the results of earlier runs.
        fingerprint: of the earlier runs; None for a new file.

    Raises:
        UsageError: it cannot be read or written, or is something else.
    """

    def __init__(self, path: Path) -> None:
        """Opens and reads the file."""
        self._file = _opened(path, _RESULTS)
        self.fingerprint: dict[str, Any] | None = None
        self.done: list[Result] = []
        self._whole = 0
        try:
            for number, line in enumerate(self._file.lines()):
                if line.endswith(b"\n"):
                    self._whole += len(line)
                    self._read(number, line)
                elif number == 0 and not f'{{"{_MARK}": '.encode().startswith(line[:20]):
                    raise _other_file()
        except BaseException:
            self.close()
            raise

    def begin(self, fingerprint: Mapping[str, Any], differences: Callable[..., str]) -> None:
        """Compares the fingerprint with that of an old file, or writes that of a new one.

        Args:
            fingerprint: values that JSON has; compared name by name.
            differences: names what differs between two.

        Raises:
            UsageError: the file is of another run; names what differs.
        """
        ours = json.loads(json.dumps(fingerprint))
        if self.fingerprint is not None and (names := differences(self.fingerprint, ours)):
            raise UsageError(
                f"{_RESULTS} is of a run with other settings; what differs: {names}. "
                "Use the same settings, or name a new file."
            )
        if self._whole < self._file.size:
            self._file.cut(self._whole)  # the half line of a kill
        if self.fingerprint is None:
            self._file.append(json.dumps({_MARK: _VERSION, "fingerprint": ours}).encode() + b"\n")

    def append(self, result: Result) -> None:
        """Adds a result; it is on the disk when this returns. Raises DiskFailed."""
        self._file.append(msgspec.json.encode(result) + b"\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _read(self, number: int, line: bytes) -> None:
        try:
            value = parse_object(line)
            if number == 0:
                if value.get(_MARK) != _VERSION:
                    raise _other_file(of_ours=_MARK in value)
                self.fingerprint = convert(value.get("fingerprint"), dict[str, Any])
            else:
                self.done.append(convert(value, Result))
        except NotReadable:
            if number == 0:
                raise _other_file() from None
            raise UsageError(
                f"{_RESULTS}, line {number + 1}: not a result. Name a new file."
            ) from None


def _other_file(*, of_ours: bool = False) -> UsageError:
    if of_ours:
        return UsageError(f"{_RESULTS} was written by another version. Name a new file.")
    return UsageError(f"{_RESULTS} is not of capt-local eval. Nothing was written; name another.")


def _opened(path: Path, what: str) -> LineFile:
    try:
        return LineFile(path, what)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or "no access"
        raise UsageError(f"{what} cannot be written: {reason}.") from None


class SampleLog:
    """The file of answers: a line for each item and method. Holds text.

    Args:
        path: of the file.
        resumed: whether it goes on from an earlier run; else it must not hold anything yet.

    Raises:
        UsageError: it cannot be written, or holds something else.
    """

    def __init__(self, path: Path, *, resumed: bool) -> None:
        """Opens the file; an answer of an earlier run is not written twice."""
        self._file = _opened(path, _SAMPLES)
        self._there: set[tuple[str, str, str]] = set()
        whole = 0
        for line in self._file.lines():
            try:
                value = json.loads(line)
                if not value["failed"]:  # else it may be tried again
                    self._there.add((value["task"], value["method"], value["id"]))
                resumed = resumed and "answer" in value
            except (ValueError, TypeError, KeyError, RecursionError):
                resumed = resumed and not line.endswith(b"\n")
                break
            whole += len(line)
        if self._file.size and not resumed:
            self.close()
            raise UsageError(f"{_SAMPLES} holds something already. Name a new file.")
        if whole < self._file.size:
            self._file.cut(whole)

    def append(self, finished: Finished) -> None:
        """Adds the answer to an item. Raises DiskFailed."""
        result = finished.result
        if result.place not in self._there:
            line = {
                "task": result.task,
                "method": result.method,
                "id": result.item,
                "failed": result.failed,
                "answer": finished.answer,
                "read": finished.read,
                "logps": list(finished.logps),
            }
            self._file.append(json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
