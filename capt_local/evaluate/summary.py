"""Results summed up: what each method reaches, and how surely it differs from one of them.

A figure is a statistic of drawn items: of all of them it is the estimate, of items that are drawn
with replacement, the same for both methods, it is one draw of the bootstrap. The interval is
between percentiles of the draws (Efron and Tibshirani 1993; for F1 and other figures that are no
means, Berg-Kirkpatrick et al. 2012). The draws are scipy's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from capt_local.evaluate.metrics import Outcome, library, metrics_of
from capt_local.evaluate.results import Result
from capt_local.evaluate.tasks import EvalTask, Measure

TARGET = "target"
RESAMPLES = 10_000
CONFIDENCE = 0.95
# Numbers of one batch of draws: 16 MB.
_BATCH_NUMBERS = 2_000_000
_OVER_CHOICES = ("macro_f1", "micro_f1")

Floats: TypeAlias = NDArray[np.float64]
# From drawn items, numbers of shape (draws, items), to a value for each draw, shape (draws,).
Statistic: TypeAlias = Callable[[NDArray[np.intp]], Floats]


class Interval(msgspec.Struct, frozen=True):
    """A figure or a comparison and how sure it is, as `--json` has it."""

    kind: str  # "value"; "ratio" (method over target) or "difference" (minus target)
    estimate: float
    low: float
    high: float
    items: int  # that there were, or that were paired


def figures(
    task: EvalTask, outcomes: Sequence[Outcome], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """The figures of one method, by the names of `metrics_of`; empty without outcomes."""
    found = {}
    for name in metrics_of(task) if outcomes else ():
        one = _statistic(task, outcomes, name)
        found[name] = interval(
            one, len(outcomes), seed, resamples, kind="value", width=_width(task, name)
        )
    return found


def compare(
    task: EvalTask,
    method: Sequence[Outcome],
    other: Sequence[Outcome],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """Differences of the figures of two methods, for bits per byte the ratio.

    The outcomes are of the same items in the same order; without any the result is empty.
    """
    found = {}
    for name in metrics_of(task) if method else ():
        ours, theirs = _statistic(task, method, name), _statistic(task, other, name)
        if task.measure is Measure.BITS:
            kind, both = "ratio", _applied(np.divide, ours, theirs)
        else:
            kind, both = "difference", _applied(np.subtract, ours, theirs)
        found[name] = interval(
            both, len(method), seed, resamples, kind=kind, width=_width(task, name)
        )
    return found


def _applied(how: np.ufunc, one: Statistic, two: Statistic) -> Statistic:
    return lambda drawn: how(one(drawn), two(drawn))


def interval(
    statistic: Statistic,
    items: int,
    seed: int = 0,
    resamples: int = RESAMPLES,
    *,
    kind: str = "difference",
    width: int = 1,
) -> Interval:
    """The percentile interval of a statistic of at least one item.

    `width` is how many numbers the statistic looks at for each drawn item.
    """
    estimate = float(statistic(np.arange(items)[None])[0])
    if items == 1:  # every draw is that item
        return Interval(kind, estimate, estimate, estimate, items)
    found = (
        library("scipy.stats")
        .bootstrap(
            (np.arange(items),),
            lambda drawn, axis: statistic(np.atleast_2d(drawn)),
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, _BATCH_NUMBERS // (items * width)),
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
        .confidence_interval
    )
    return Interval(kind, estimate, float(found.low), float(found.high), items)


def _statistic(task: EvalTask, outcomes: Sequence[Outcome], name: str) -> Statistic:
    def column(name: str) -> Floats:
        return np.array([outcome.values[name] for outcome in outcomes], dtype=np.float64)

    if name == "bits_per_byte":
        bits, sizes = column("nats") / math.log(2), column("bytes")
        return lambda drawn: bits[drawn].sum(axis=-1) / sizes[drawn].sum(axis=-1)
    if name in _OVER_CHOICES:
        return _f1(task, outcomes, macro=name == "macro_f1")
    values = column(name)
    return lambda drawn: values[drawn].mean(axis=-1)


def _f1(task: EvalTask, outcomes: Sequence[Outcome], *, macro: bool) -> Statistic:
    """The mean of F1 over the choices, or F1 over all decisions; 0 of what never comes up."""
    right, named = np.zeros((2, len(outcomes), len(task.choices)))
    for row, outcome in enumerate(outcomes):
        # An answer that names nothing is a row of zeros: a miss of its class, a find of none.
        right[row, list(outcome.expected)] = 1
        named[row, list(outcome.predicted)] = 1
    hits, sizes = right * named, right + named

    def statistic(drawn: NDArray[np.intp]) -> Floats:
        # 2 TP / (2 TP + FP + FN), by class or over all.
        both, either = 2 * hits[drawn].sum(axis=-2), sizes[drawn].sum(axis=-2)
        if not macro:
            both, either = both.sum(axis=-1, keepdims=True), either.sum(axis=-1, keepdims=True)
        scores: Floats = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
        return scores.mean(axis=-1)

    return statistic


def _width(task: EvalTask, name: str) -> int:
    return len(task.choices) if name in _OVER_CHOICES else 1


class Counts(msgspec.Struct, frozen=True):
    """What became of the items of a task under a method."""

    done: int
    failed: dict[str, int]  # by reason
    left: int  # not run, since the run was stopped
    unanswered: int = 0  # of classifications and labels: answers that name no choice
    unfinished: int = 0


class MethodFigures(msgspec.Struct, frozen=True):
    """One method on one task, as `--json` has it; figures by the names of `metrics_of`."""

    metrics: dict[str, float]
    values: dict[str, Interval]
    intervals: dict[str, Interval]  # against the other method, over the items that both have done
    counts: Counts
    seconds: float
    tokens: int
    decoded: int


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One task under all methods, by their names; intervals are against one of them."""

    task: EvalTask
    methods: dict[str, MethodFigures]
    against: str = TARGET


def summarise_task(
    task: EvalTask,
    methods: Sequence[str],
    results: Iterable[Result],
    *,
    seed: int = 0,
    against: str = TARGET,
) -> TaskSummary:
    """Sums up one task from results of it and others, in any order."""
    found: dict[str, dict[str, Result]] = {method: {} for method in methods}
    for result in results:
        if result.task == task.name and result.method in found:
            found[result.method][result.item] = result
    others = found.get(against, {})
    return TaskSummary(
        task,
        {
            method: _figures(task, found[method], others if method != against else {}, seed)
            for method in methods
        },
        against,
    )


def _figures(
    task: EvalTask, found: Mapping[str, Result], others: Mapping[str, Result], seed: int
) -> MethodFigures:
    # In the order of the task: sums and draws do not depend on the order of the run.
    results = [found[item.id] for item in task.items if item.id in found]
    outcomes = [result.outcome for result in results if result.outcome is not None]
    ours, theirs = [], []
    for result in results:
        other = others.get(result.item)
        if result.outcome is not None and other is not None and other.outcome is not None:
            ours.append(result.outcome)
            theirs.append(other.outcome)
    values = figures(task, outcomes, seed=seed)
    return MethodFigures(
        metrics={name: value.estimate for name, value in values.items()},
        values=values,
        intervals=compare(task, ours, theirs, seed=seed),
        counts=Counts(
            done=len(outcomes),
            failed=dict(Counter(result.failed for result in results if result.failed)),
            left=len(task.items) - len(results),
            unanswered=sum(bool(one.expected) and not one.predicted for one in outcomes),
            unfinished=sum(result.unfinished for result in results),
        ),
        seconds=math.fsum(result.seconds for result in results),
        tokens=sum(result.tokens for result in results),
        decoded=sum(result.decoded for result in results),
    )


def as_object(
    summaries: Sequence[TaskSummary],
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
    *,
    interrupted: bool,
) -> dict[str, Any]:
    """What `--json` writes; see docs/eval.md."""
    return {
        "tasks": {
            summary.task.name: {
                "kind": str(summary.task.kind),
                "measure": str(summary.task.measure),
                "licence": summary.task.licence,
                "items": len(summary.task.items),
                "items_in_file": summary.task.total,
                "cut": len(summary.task.cut),
                "against": summary.against,
                "methods": msgspec.to_builtins(summary.methods),
            }
            for summary in summaries
        },
        "settings": dict(settings),
        "provenance": dict(provenance),
        "interrupted": interrupted,
    }
