"""Runs tasks under methods: one item at a time, under every method in turn, on the same models.

The KV caches are cleared between methods, so that no result depends on earlier ones: a resumed run
gives the same results as an uninterrupted one, and times are comparable.
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

from capt_local.decoding.options import FinishReason, GenerateOptions
from capt_local.decoding.scoring import ChoiceScores
from capt_local.errors import (
    Cancelled,
    CaptError,
    ContextOverflow,
    MemoryShortage,
    NumericalError,
    UsageError,
)
from capt_local.evaluate import ChoiceBy
from capt_local.evaluate.metrics import Outcome, Result, judge, library
from capt_local.evaluate.tasks import (
    LABEL_SEPARATOR,
    YES_NO,
    EvalTask,
    Item,
    Kind,
    Measure,
    label_question,
    messages,
    read_answer,
    text,
)
from capt_local.line_file import LineFile
from capt_local.prompting.messages import Message
from capt_local.rerank import Scorer, best_of, draw_choices, shares
from capt_local.runtime import Runtime
from capt_local.strict_json import ParseError, convert, parse_object

# Reasons for failed items, as in results files and tables.
_REASONS: tuple[tuple[type[CaptError], str], ...] = (
    (ContextOverflow, "does not fit"),
    (UsageError, "refused"),
    (NumericalError, "not finite"),
    (CaptError, "model error"),
)
# Permanent failures; all others are retried when a run is resumed.
PERMANENT = frozenset({"does not fit", "refused"})
_MARK, _VERSION = "capt_local_eval", 2
_RESULTS = "The results file (--results)"
_SAMPLES = "The file of answers (--log-samples)"
_SAMPLE_START = b'{"task":'
BEST = "+best"
"""Suffix of a method's name: the best of several of its answers."""


@dataclass(frozen=True, slots=True)
class Finished:
    """An item that is done under a method, with its texts."""

    result: Result
    answer: str = ""  # generated text; "" for perplexity and for choices scored by likelihood
    read: str | None = None  # the parsed answer, or the choice
    logps: tuple[float, ...] = ()  # of choices scored by likelihood, in nats
    problem: str = ""  # why it failed; holds no text of the item


@dataclass(frozen=True, slots=True)
class EvalPlan:
    """How answers are made."""

    methods: Mapping[str, GenerateOptions]  # by name; the length of answers is the task's
    choice: ChoiceBy = ChoiceBy.LIKELIHOOD
    raw: bool = False  # raw prompts, for models without a chat template
    max_tokens: int | None = None  # None: the task's
    best_of: int = 1  # candidates of a method whose name ends in `BEST`
    scorer: Scorer | None = None  # ranks them; None: the majority, of texts the likeliest

    def check(self, tasks: Sequence[EvalTask]) -> None:
        """Raises UsageError if two tasks have one name, or a library is not installed."""
        library("scipy.stats")
        names = [task.name for task in tasks]
        for number, task in enumerate(tasks, 1):
            if task.name in names[: number - 1]:
                raise UsageError(
                    f"Tasks {names.index(task.name) + 1} and {number} have the same name; "
                    "run them one after the other, or rename one."
                )
            if task.measure is Measure.ROUGE:
                library("rouge_score.rouge_scorer")

    def options(self, task: EvalTask, method: str) -> GenerateOptions:
        longest = self.max_tokens or task.max_tokens
        options = dataclasses.replace(self.methods[method], max_tokens=longest)
        if task.measure is not Measure.FIELDS:
            options = dataclasses.replace(options, structure=None)
        return options

    def scores_choices(self, task: EvalTask) -> bool:
        """Whether choices are scored by likelihood, instead of generating a text."""
        return task.kind is Kind.CLASSIFICATION and self.choice is not ChoiceBy.FREE


def run(
    runtime: Runtime,
    tasks: Sequence[EvalTask],
    plan: EvalPlan,
    *,
    done: Collection[tuple[str, str, str]] = (),
    cancel: Callable[[], bool] = lambda: False,
) -> Iterator[Finished]:
    """Runs every item of every task under every method; an error of one item is its result.

    Args:
        runtime: with the models that the methods need.
        tasks: see `EvalPlan.check`.
        plan: how answers are made.
        done: keys of results that are there already.
        cancel: called at every token; true ends the run, and what is half done is dropped.

    Raises:
        MemoryShortage: the models do not fit any more.
    """
    asking = _ItemRunner(runtime, plan, cancel)
    for task in tasks:
        for item in task.items:
            for method in plan.methods:
                if (task.name, method, item.id) in done:
                    continue
                try:
                    if cancel():
                        return
                    yield asking.finished(task, item, method)
                except Cancelled:
                    return


@dataclass(frozen=True, slots=True)
class _ItemRunner:
    """Runs single items on the models."""

    runtime: Runtime
    plan: EvalPlan
    cancel: Callable[[], bool]

    def finished(self, task: EvalTask, item: Item, method: str) -> Finished:
        """Runs one item under one method, with its costs; an error becomes its result."""
        runtime = self.runtime
        runtime.forget()
        before, started = sum(runtime.decoded().values()), time.perf_counter()
        blank = Result(task.name, method, item.id, cut=item.id in task.cut)
        try:
            found = self._answered(task, item, blank)
        except (Cancelled, MemoryShortage):
            raise
        except CaptError as error:
            reason = next(why for kind, why in _REASONS if isinstance(error, kind))
            found = Finished(msgspec.structs.replace(blank, failed=reason), problem=str(error))
        result = msgspec.structs.replace(
            found.result,
            decoded=sum(runtime.decoded().values()) - before,
            seconds=time.perf_counter() - started,
        )
        return dataclasses.replace(found, result=result)

    def _answered(self, task: EvalTask, item: Item, blank: Result) -> Finished:
        plan, fill = self.plan, msgspec.structs.replace
        options = plan.options(task, blank.method)
        if task.kind is Kind.PERPLEXITY:
            score = self.runtime.score(item.input.encode(), options, cancel=self.cancel)
            if not math.isfinite(score.nats):
                raise NumericalError("The text has probability 0 under this method.")
            outcome = Outcome({"nats": score.nats, "bytes": float(score.size)})
            return Finished(fill(blank, outcome=outcome, tokens=score.tokens))
        if task.questions:
            named, logps = self._labels(task, item, options)
            return Finished(fill(blank, outcome=judge(task, item, named)), read=named, logps=logps)
        prompt = (text if plan.raw else messages)(item, task)
        if blank.method.endswith(BEST):
            read, written, tokens = self._best(task, item, prompt, options)
            outcome = judge(task, item, read)
            return Finished(fill(blank, outcome=outcome, tokens=tokens), written, read)
        if plan.scores_choices(task):
            chosen = self._chosen(prompt, item.choices, options)
            read = item.choices[chosen.index]
            tokens = sum(score.tokens for score in chosen.scores)
            result = fill(blank, outcome=judge(task, item, read), tokens=tokens)
            return Finished(result, read=read, logps=chosen.logps)
        generation = self.runtime.generate(prompt, options, raw=plan.raw, cancel=self.cancel)
        for _ in generation:
            pass
        if generation.finish is FinishReason.INTERRUPTED:
            raise Cancelled("The run was stopped.")
        read = read_answer(generation.text, item, task)
        result = fill(
            blank,
            outcome=judge(task, item, read),
            tokens=generation.steps_done,
            unfinished=generation.finish is FinishReason.LENGTH,
        )
        return Finished(result, generation.text, read)

    def _chosen(
        self, prompt: str | list[Message], choices: Sequence[str], options: GenerateOptions
    ) -> ChoiceScores:
        """The likeliest choice; in raw text each is preceded by a space."""
        raw = self.plan.raw
        answers = [f" {choice}" if raw else choice for choice in choices]
        return self.runtime.choose(prompt, answers, options, raw=raw, cancel=self.cancel)

    def _labels(
        self, task: EvalTask, item: Item, options: GenerateOptions
    ) -> tuple[str, tuple[float, ...]]:
        """The labels whose question is answered with yes, and the logp of each answer in nats."""
        named, logps = [], list[float]()
        for label in item.choices:
            question = label_question(item, task, label, raw=self.plan.raw)
            chosen = self._chosen(question, YES_NO, options)
            named += [label] if chosen.index == 0 else []
            logps += chosen.logps
        return LABEL_SEPARATOR.join(named) or task.no_answer, tuple(logps)

    def _best(
        self, task: EvalTask, item: Item, prompt: str | list[Message], options: GenerateOptions
    ) -> tuple[str | None, str, int]:
        """What the best of several answers says, that answer, and the tokens of all of them."""
        plan = self.plan
        question = f"{item.instruction}\n\n{item.input}".strip()
        if plan.scores_choices(task):
            # Drawn by their likelihood, which is the same as writing them where no other answer
            # can be written.
            chosen = self._chosen(prompt, item.choices, options)
            seed = options.sample.seed + zlib.crc32(item.id.encode())
            drawn = draw_choices(chosen.logps, plan.best_of, options.sample.temperature, seed)
            said = [item.choices[place] for place in drawn]
            scores = plan.scorer.scores(question, said) if plan.scorer else shares(said)
            return said[int(np.argmax(scores))], "", sum(score.tokens for score in chosen.scores)
        found = best_of(
            self.runtime, prompt, options, plan.best_of, plan.scorer, raw=plan.raw,
            cancel=self.cancel, question=question,
        ).candidates  # fmt: skip
        texts = [one.generation.text for one in found]
        read = [read_answer(text, item, task) for text in texts]
        best = 0
        if plan.scorer is None and task.kind is Kind.CLASSIFICATION:
            best = int(np.argmax(shares(read)))
        return read[best], texts[best], sum(one.generation.steps_done for one in found)


# --- the two files -------------------------------------------------------------------------------


class ResultsFile:
    """The journal of results: each is on the disk before the next item begins.

    The first line is a fingerprint of everything that decides a result, so that only the same run
    goes on with the file; the others hold ids, places of choices and figures, no text. `done` are
    the results of earlier runs, `fingerprint` is theirs; None for a new file.
    """

    def __init__(self, path: Path) -> None:
        self.fingerprint: dict[str, Any] | None = None
        self.done: list[Result] = []
        self._whole = 0
        self._file = _opened(path, _RESULTS)
        try:
            for number, line in enumerate(self._file.lines()):
                if line.endswith(b"\n"):
                    self._whole += len(line)
                    self._read(number, parse_object(line))
                elif number == 0 and not f'{{"{_MARK}": '.encode().startswith(line[:20]):
                    raise ParseError("another file")
        except ParseError:
            self.close()
            if number:
                problem = f", line {number + 1}: not a result. Name a new file."
            else:
                problem = " is not of capt-local eval. Nothing was written; name another."
            raise UsageError(_RESULTS + problem) from None
        except BaseException:
            self.close()
            raise

    def _read(self, number: int, value: dict[str, object]) -> None:
        if number:
            self.done.append(convert(value, Result))
            return
        if _MARK not in value:
            raise ParseError("another file")
        if value[_MARK] != _VERSION:
            raise UsageError(f"{_RESULTS} was written by another version. Name a new file.")
        self.fingerprint = convert(value.get("fingerprint"), dict[str, Any])

    def begin(self, fingerprint: Mapping[str, Any], differences: Callable[..., str]) -> None:
        """Writes the fingerprint of a new file; refuses an old file of another run."""
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
        self._file.close()


class _SampleLine(msgspec.Struct):
    """A line of the file of answers."""

    task: str
    method: str
    id: str
    failed: str
    answer: str
    read: str | None
    logps: tuple[float | None, ...]


class SampleLog:
    """The file of answers: a line for each item and method. Holds text.

    Unless the run is `resumed`, the file must not hold anything yet.
    """

    def __init__(self, path: Path, *, resumed: bool) -> None:
        self._file = _opened(path, _SAMPLES)
        # An answer of an earlier run is not written twice, unless it failed and is tried again.
        self._there: set[tuple[str, str, str]] = set()
        whole = 0
        try:
            for line in self._file.lines():
                if line.endswith(b"\n"):
                    old = convert(parse_object(line), _SampleLine)
                    self._there |= set() if old.failed else {(old.task, old.method, old.id)}
                    whole += len(line)
                elif not line.startswith(_SAMPLE_START[: len(line)]):
                    resumed = False
        except ParseError:
            resumed = False
        if self._file.size and not resumed:
            self.close()
            raise UsageError(f"{_SAMPLES} holds something already. Name a new file.")
        if whole < self._file.size:
            self._file.cut(whole)

    def append(self, finished: Finished) -> None:
        """Adds the answer to an item. Raises DiskFailed."""
        result = finished.result
        if result.key not in self._there:
            line = _SampleLine(
                *result.key, result.failed, finished.answer, finished.read, finished.logps
            )
            self._file.append(msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        self._file.close()


def _opened(path: Path, what: str) -> LineFile:
    try:
        return LineFile(path, what)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or "no access"
        raise UsageError(f"{what} cannot be written: {reason}.") from None
