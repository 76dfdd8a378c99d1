"""How sure figures and differences are: bootstrap intervals, paired between two methods.

Items are drawn with replacement, the same for both methods, and the difference is computed anew
from each draw; the interval is between percentiles of these (Efron and Tibshirani 1993; for F1 and
other figures that are no means, Berg-Kirkpatrick et al. 2012). The draws are scipy's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from capt_local.errors import UsageError
from capt_local.evaluate.metrics import Floats, Outcome, column, indicator, library, metrics_of
from capt_local.evaluate.tasks import EvalTask, Measure

RESAMPLES = 10_000
CONFIDENCE = 0.95
# Numbers of one batch of draws: 16 MB.
_BATCH_NUMBERS = 2_000_000

Statistic: TypeAlias = Callable[[NDArray[np.intp]], Floats]


class Interval(msgspec.Struct, frozen=True):
    """A difference or ratio and how sure it is, as `--json` has it.

    Attributes:
        kind: "value" of a figure itself; "ratio": method over target, with 1 for the same;
            "difference": method minus target.
        estimate: over the items as they are.
        low: lower end.
        high: upper end.
        items: how many were paired.
    """

    kind: str
    estimate: float
    low: float
    high: float
    items: int


def compare(
    task: EvalTask,
    method: Sequence[Outcome],
    target: Sequence[Outcome],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """Intervals for every figure of a task.

    Args:
        task: that the outcomes are of.
        method: outcomes of the method.
        target: outcomes of the target for the same items, in the same order.
        seed: of the draws.
        resamples: how many.

    Returns:
        By the names of `metrics_of`: differences, for bits per byte the ratio.

    Raises:
        UsageError: the outcomes are not of the same items, or none; or scipy is not installed.
    """
    if len(method) != len(target):
        raise UsageError("An interval needs the same items under both methods.")
    if [one.expected for one in method] != [one.expected for one in target]:
        raise UsageError("The items of the two methods are not the same.")
    if task.measure is Measure.BITS and (column(method, "bytes") != column(target, "bytes")).any():
        raise UsageError("The texts of the two methods are not the same.")
    kind = "ratio" if task.measure is Measure.BITS else "difference"
    statistic = partial(_paired, task, method, target)
    return _all(task, statistic, kind, len(method), seed, resamples)


def values(task: EvalTask, outcomes: Sequence[Outcome], *, seed: int = 0) -> dict[str, Interval]:
    """Intervals of the figures of one method themselves, by the names of `metrics_of`.

    Raises:
        UsageError: there is no outcome; or scipy is not installed.
    """
    return _all(task, partial(_figure, task, outcomes), "value", len(outcomes), seed)


def _all(
    task: EvalTask,
    statistic: Callable[[str], Statistic],
    kind: str,
    items: int,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    if not items:
        raise UsageError("An interval needs at least one item.")
    return {
        name: interval(
            statistic(name),
            items,
            kind=kind,
            seed=seed,
            resamples=resamples,
            width=len(task.choices) if name.endswith("_f1") else 1,
        )
        for name in metrics_of(task)
    }


def interval(
    statistic: Statistic,
    items: int,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    kind: str = "difference",
    width: int = 1,
) -> Interval:
    """The percentile interval of a statistic of paired items.

    Args:
        statistic: from drawn items, numbers of shape (draws, items), to a value for each draw,
            shape (draws,).
        items: how many there are, at least 1.
        seed: of the draws.
        resamples: how many.
        kind: see `Interval`.
        width: numbers that the statistic looks at for each drawn item.

    Raises:
        UsageError: scipy is not installed.
    """
    estimate = float(statistic(np.arange(items)[None])[0])
    if items == 1:  # every draw is that item
        return Interval(kind, estimate, estimate, estimate, items)
    found: Any = (
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


def _figure(task: EvalTask, outcomes: Sequence[Outcome], name: str) -> Statistic:
    if name == "bits_per_byte":
        bits, sizes = column(outcomes, "nats") / math.log(2), column(outcomes, "bytes")
        return lambda drawn: bits[drawn].sum(axis=-1) / sizes[drawn].sum(axis=-1)
    if name in ("macro_f1", "micro_f1"):
        return _f1_statistic(task, outcomes, name.removesuffix("_f1"))
    one = column(outcomes, name)
    return lambda drawn: one[drawn].mean(axis=-1)


def _paired(
    task: EvalTask, method: Sequence[Outcome], target: Sequence[Outcome], name: str
) -> Statistic:
    ours, theirs = _figure(task, method, name), _figure(task, target, name)
    if task.measure is Measure.BITS:
        return lambda drawn: ours(drawn) / theirs(drawn)
    return lambda drawn: ours(drawn) - theirs(drawn)


def _f1_statistic(task: EvalTask, outcomes: Sequence[Outcome], average: str) -> Statistic:
    classes = len(task.choices)
    right = indicator([outcome.expected for outcome in outcomes], classes)
    named = indicator([outcome.predicted for outcome in outcomes], classes)
    hits, sizes = (right * named).astype(np.float64), (right + named).astype(np.float64)

    def statistic(drawn: NDArray[np.intp]) -> Floats:
        # 2 TP / (2 TP + FP + FN), by class or over all; 0 where nothing was right or named.
        both, either = 2 * hits[drawn].sum(axis=-2), sizes[drawn].sum(axis=-2)
        if average == "micro":
            both, either = both.sum(axis=-1, keepdims=True), either.sum(axis=-1, keepdims=True)
        scores: Floats = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
        return scores.mean(axis=-1)

    return statistic
