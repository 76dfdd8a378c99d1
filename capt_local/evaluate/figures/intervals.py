"""How sure a difference is: paired bootstrap intervals between a method and the target.

Items are drawn with replacement, the same for both methods, and the difference is computed anew
from each draw; the interval is between percentiles of these (Efron and Tibshirani 1993; for F1 and
other figures that are no means, Berg-Kirkpatrick et al. 2012).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from capt_local.errors import UsageError
from capt_local.evaluate.figures.metrics import Floats, Outcome, column, indicator, metrics_of
from capt_local.evaluate.tasks.items import Measure
from capt_local.evaluate.tasks.task import Task

RESAMPLES = 10_000
CONFIDENCE = 0.95
# Counts of one chunk of draws, as many as fit into about 16 MB.
_CHUNK = 2_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference (or ratio) and how sure it is.

    Attributes:
        estimate: over the items as they are.
        low: lower end.
        high: upper end.
        items: how many were paired.
        ratio: whether it is method over target, with 1 for the same, rather than method minus
            target, with 0.
    """

    estimate: float
    low: float
    high: float
    items: int
    ratio: bool = False

    @property
    def excludes_same(self) -> bool:
        """Whether the interval is on one side of what the same figures would give."""
        same = 1.0 if self.ratio else 0.0
        return not self.low <= same <= self.high


Weights = NDArray[np.float64]
_Statistic = Callable[[Weights], Floats]


def compare(
    task: Task,
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
        UsageError: the outcomes are not of the same items, or none.
    """
    if not method or len(method) != len(target):
        raise UsageError("An interval needs the same items under both methods, at least one.")
    if [one.expected for one in method] != [one.expected for one in target]:
        raise UsageError("The items of the two methods are not the same.")
    if task.measure is Measure.BITS and (column(method, "bytes") != column(target, "bytes")).any():
        raise UsageError("The texts of the two methods are not the same.")
    return {
        name: paired(
            _statistic(task, name, method, target),
            len(method),
            seed=seed,
            resamples=resamples,
            ratio=name == "bits_per_byte",
        )
        for name in metrics_of(task)
    }


def paired(
    statistic: _Statistic,
    items: int,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    ratio: bool = False,
) -> Interval:
    """The percentile interval of a statistic of paired items.

    Args:
        statistic: from how often each item was drawn, float64 of shape (draws, items), to a value
            for each draw, shape (draws,).
        items: how many there are.
        seed: of the draws.
        resamples: how many.
        ratio: see `Interval`.

    Raises:
        UsageError: there is no item, or no draw.
    """
    if items < 1 or resamples < 1:
        raise UsageError("An interval needs at least one item and one draw.")
    draws = [statistic(counts) for counts in _counts(items, resamples, seed)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(draws), (tail, 1 - tail))
    estimate = statistic(np.ones((1, items)))[0]
    return Interval(float(estimate), float(low), float(high), items, ratio)


def difference_of_means(method: Floats, target: Floats) -> _Statistic:
    """The mean of method minus target, both of shape (items,)."""
    gain = method - target
    return lambda counts: counts @ gain / counts.sum(axis=1)


def ratio_of_sums(method: Floats, target: Floats) -> _Statistic:
    """The sum of the method over the sum of the target, both of shape (items,), positive."""
    return lambda counts: (counts @ method) / (counts @ target)


def difference_of_f1(
    task: Task, method: Sequence[Outcome], target: Sequence[Outcome], average: str
) -> _Statistic:
    """F1 of the method minus F1 of the target; each draw gets an F1 of its own."""
    ours = _f1_statistic(task, method, average)
    theirs = _f1_statistic(task, target, average)
    return lambda counts: ours(counts) - theirs(counts)


def _statistic(
    task: Task, name: str, method: Sequence[Outcome], target: Sequence[Outcome]
) -> _Statistic:
    if name == "bits_per_byte":
        return ratio_of_sums(column(method, "nats"), column(target, "nats"))
    if name in ("macro_f1", "micro_f1"):
        return difference_of_f1(task, method, target, name.removesuffix("_f1"))
    return difference_of_means(column(method, name), column(target, name))


def _f1_statistic(task: Task, outcomes: Sequence[Outcome], average: str) -> _Statistic:
    classes = len(task.choices)
    right = indicator([outcome.expected for outcome in outcomes], classes)
    named = indicator([outcome.predicted for outcome in outcomes], classes)
    hits, sizes = (right * named).astype(np.float64), (right + named).astype(np.float64)

    def statistic(counts: Weights) -> Floats:
        # 2 TP / (2 TP + FP + FN), by class or over all; 0 where nothing was right or named.
        both, either = 2 * (counts @ hits), counts @ sizes
        if average == "micro":
            both, either = both.sum(axis=1, keepdims=True), either.sum(axis=1, keepdims=True)
        scores: Floats = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
        return scores.mean(axis=1)

    return statistic


def _counts(items: int, resamples: int, seed: int) -> Iterator[Weights]:
    """How often each item is drawn: float64 of shape (draws, items), in chunks."""
    random = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // items)
    for begin in range(0, resamples, at_once):
        draws = min(at_once, resamples - begin)
        chosen = random.integers(items, size=(draws, items))
        chosen += np.arange(draws)[:, None] * items
        flat = np.bincount(chosen.ravel(), minlength=draws * items)
        yield flat.reshape(draws, items).astype(np.float64)
