"""Runs tasks under methods: one item at a time, under every method in turn, on the same models.

The caches are emptied between two methods, so that a result depends on nothing that came before:
a run that was resumed gives what one that was not would have given, and times can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

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
from capt_local.evaluate.figures.metrics import Outcome, judge, judge_prose
from capt_local.evaluate.runs.exam import ChoiceBy, Exam, Plan
from capt_local.evaluate.runs.result import DOES_NOT_FIT, MODEL, NOT_FINITE, REFUSED, Result
from capt_local.evaluate.tasks.answers import vote
from capt_local.evaluate.tasks.items import Item, Kind
from capt_local.runtime import Runtime

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
    exams: Sequence[Exam],
    plan: Plan,
    *,
    done: Collection[tuple[str, str, str]] = (),
    cancel: Cancel = lambda: False,
) -> Iterator[Finished]:
    """Runs every item of every exam under every method.

    Args:
        runtime: with the models that the methods need.
        exams: see `Exam`.
        plan: see `Plan`.
        done: places (task, method, item) of results that are there already.
        cancel: asked at every token; true ends the run, and what is half done is dropped.

    Yields:
        Each item under each method as it is done. An error of one item is its result.

    Raises:
        MemoryShortage: the models do not fit any more.
    """
    for exam in exams:
        for item in exam.task.items:
            for method in plan.methods:
                if (exam.task.name, method, item.id) in done:
                    continue
                try:
                    if cancel():
                        return
                    yield _finished(runtime, exam, item, method, plan, cancel)
                except Cancelled:
                    return


def _finished(
    runtime: Runtime, exam: Exam, item: Item, method: str, plan: Plan, cancel: Cancel
) -> Finished:
    runtime.forget()
    before, started = sum(runtime.decoded().values()), time.perf_counter()
    found, reason, problem = None, "", ""
    try:
        found = _answered(runtime, exam, item, method, plan, cancel)
    except (Cancelled, MemoryShortage):
        raise
    except CaptError as error:
        reason, problem = _reason(error), str(error)
    result = Result(
        task=exam.task.name,
        method=method,
        item=item.id,
        outcome=found.outcome if found else None,
        failed=reason,
        tokens=found.tokens if found else 0,
        decoded=sum(runtime.decoded().values()) - before,
        seconds=time.perf_counter() - started,
        cut=item.id in exam.cut,
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
    runtime: Runtime, exam: Exam, item: Item, method: str, plan: Plan, cancel: Cancel
) -> _Answer:
    if exam.task.kind is Kind.PERPLEXITY:
        score = runtime.score(item.input.encode(), plan.options(exam, method), cancel=cancel)
        return _Answer(judge_prose(score.nats, score.size), score.tokens)
    if exam.task.kind is Kind.CLASSIFICATION and plan.choice_of(exam) is not ChoiceBy.FREE:
        return _chosen(runtime, exam, item, plan.options(exam, method), plan, cancel)
    return _written(runtime, exam, item, method, plan, cancel)


def _chosen(
    runtime: Runtime,
    exam: Exam,
    item: Item,
    options: GenerateOptions,
    plan: Plan,
    cancel: Cancel,
) -> _Answer:
    """A classification by the likelihood of its choices, or by an answer that can only be one."""
    chosen = runtime.choose(
        exam.prompt(item, raw=plan.raw),
        exam.spoken(item, raw=plan.raw),
        options,
        raw=plan.raw,
        how=_HOW[plan.choice_of(exam)],
        cancel=cancel,
    )
    said = item.choices[chosen.index]
    return _Answer(
        judge(exam.task, item, said),
        tokens=sum(score.tokens for score in chosen.scores),
        said=said,
        logps=chosen.logps,
    )


def _written(
    runtime: Runtime, exam: Exam, item: Item, method: str, plan: Plan, cancel: Cancel
) -> _Answer:
    """An answer in the model's words, or what most of several say."""
    assert exam.style is not None, "prose is not asked"
    prompt = exam.prompt(item, raw=plan.raw)
    answers, tokens, unfinished = [], 0, 0
    for draw in range(exam.style.samples):
        options = plan.options(exam, method, draw)
        generation = runtime.generate(prompt, options, raw=plan.raw, cancel=cancel)
        for _ in generation:
            pass
        if generation.finish is FinishReason.INTERRUPTED:
            raise Cancelled("The run was stopped.")
        answers.append(generation.text)
        tokens += generation.steps_done
        unfinished += generation.finish is FinishReason.LENGTH
    said = vote([exam.style.read(answer, item, exam.task) for answer in answers])
    outcome = judge(exam.task, item, said)
    return _Answer(outcome, tokens, tuple(answers), said, unfinished=unfinished)
