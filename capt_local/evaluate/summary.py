"""Results summed up: what each method reaches, and how surely it differs from one of them."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from capt_local.evaluate.intervals import Interval, compare
from capt_local.evaluate.metrics import Outcome, metrics_of, summarise
from capt_local.evaluate.run import Result
from capt_local.evaluate.tasks import Task

TARGET = "target"


@dataclass(frozen=True, slots=True)
class Cell:
    """One method on one task.

    Attributes:
        method: its name.
        done: items that have an outcome.
        failed: items that have none, by reason.
        left: items that were not run, since the run was stopped.
        metrics: by the names of `metrics_of`; empty when nothing is done.
        intervals: 95 % intervals of the difference to the method that the table is against (bits
            per byte: of the ratio), over the items that both have done; empty for that method.
        unanswered: classification and labels: answers that name no choice.
        unfinished: answers that were ended by the limit on their length.
        seconds: all models, all items.
        tokens: see `Result`.
        decoded: see `Result`.
    """

    method: str
    done: int
    failed: Mapping[str, int]
    left: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    unanswered: int = 0
    unfinished: int = 0
    seconds: float = 0.0
    tokens: int = 0
    decoded: int = 0


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One task under all methods.

    Attributes:
        task: what was asked.
        cells: one for each method, in their order.
        cut: items whose input was cut on request.
        against: the method that intervals are against.
    """

    task: Task
    cells: tuple[Cell, ...]
    cut: int
    against: str = TARGET


def summarise_task(
    task: Task,
    methods: Sequence[str],
    results: Iterable[Result],
    *,
    seed: int = 0,
    against: str = TARGET,
    each: Callable[[], None] = lambda: None,
) -> TaskSummary:
    """Sums up one task.

    Args:
        task: that was run.
        methods: in the order of the table.
        results: of the task and others, in any order.
        seed: of the bootstrap.
        against: the method that intervals are against.
        each: called after each method; an interval takes a moment.

    Raises:
        UsageError: a library that a figure needs is not installed.
    """
    by_method: dict[str, dict[str, Result]] = {method: {} for method in methods}
    ids = [item.id for item in task.items]
    for result in results:
        if result.task == task.name and result.method in by_method:
            by_method[result.method][result.item] = result
    cells = []
    for method in methods:
        found = by_method[method]
        others = by_method.get(against, {}) if method != against else {}
        cells.append(_summarised(task, method, ids, found, others, seed))
        each()
    cut = {result.item for found in by_method.values() for result in found.values() if result.cut}
    return TaskSummary(task, tuple(cells), len(cut), against)


def _summarised(
    task: Task,
    method: str,
    ids: Sequence[str],
    found: Mapping[str, Result],
    others: Mapping[str, Result],
    seed: int,
) -> Cell:
    # In the order of the task: sums and draws do not depend on the order of the run.
    results = [found[id] for id in ids if id in found]
    outcomes = [result.outcome for result in results if result.outcome is not None]
    return Cell(
        method=method,
        done=len(outcomes),
        failed=dict(Counter(result.failed for result in results if result.failed)),
        left=len(ids) - len(results),
        metrics=summarise(task, outcomes) if outcomes else {},
        intervals=_intervals(task, ids, found, others, seed),
        unanswered=sum(bool(one.expected) and not one.predicted for one in outcomes),
        unfinished=sum(result.unfinished for result in results),
        seconds=math.fsum(result.seconds for result in results),
        tokens=sum(result.tokens for result in results),
        decoded=sum(result.decoded for result in results),
    )


def _intervals(
    task: Task,
    ids: Sequence[str],
    found: Mapping[str, Result],
    others: Mapping[str, Result],
    seed: int,
) -> dict[str, Interval]:
    """Over the items that both have done; none when there is no such item."""
    ours: list[Outcome] = []
    theirs: list[Outcome] = []
    for id in ids:
        if id in found and id in others:
            one, other = found[id].outcome, others[id].outcome
            if one is not None and other is not None:
                ours.append(one)
                theirs.append(other)
    return compare(task, ours, theirs, seed=seed) if ours else {}


def as_object(
    summaries: Sequence[TaskSummary],
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
    *,
    interrupted: bool,
) -> dict[str, Any]:
    """What `--json` writes; see docs/eval.md."""
    return {
        "tasks": {summary.task.name: _task(summary) for summary in summaries},
        "settings": dict(settings),
        "provenance": dict(provenance),
        "interrupted": interrupted,
    }


def _task(summary: TaskSummary) -> dict[str, Any]:
    task = summary.task
    return {
        "kind": str(task.kind),
        "measure": str(task.measure),
        "licence": task.licence,
        "items": len(task.items),
        "items_in_file": task.total,
        "cut": summary.cut,
        "methods": {cell.method: _cell(cell, summary.against) for cell in summary.cells},
    }


def _cell(cell: Cell, against: str) -> dict[str, Any]:
    return {
        "metrics": dict(cell.metrics),
        "intervals": {name: _interval(one, against) for name, one in cell.intervals.items()},
        "counts": {
            "done": cell.done,
            "failed": dict(cell.failed),
            "left": cell.left,
            "unanswered": cell.unanswered,
            "unfinished": cell.unfinished,
        },
        "seconds": cell.seconds,
        "tokens": cell.tokens,
        "decoded": cell.decoded,
    }


def _interval(interval: Interval, against: str) -> dict[str, Any]:
    return {
        "against": against,
        "kind": "ratio" if interval.ratio else "difference",
        "estimate": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "items": interval.items,
    }


_CSV = (
    *("task", "kind", "method", "metric", "value"),
    *("against", "interval", "estimate", "low", "high", "paired_items"),
    *("done", "failed", "left", "seconds", "tokens", "decoded"),
)


def as_csv(summaries: Sequence[TaskSummary]) -> str:
    """A line for each task, method and figure."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV)
    for summary in summaries:
        for cell in summary.cells:
            for name in metrics_of(summary.task):
                writer.writerow(_csv_row(summary, cell, name))
    return out.getvalue()


def _csv_row(summary: TaskSummary, cell: Cell, name: str) -> tuple[object, ...]:
    interval = cell.intervals.get(name)
    shown: tuple[object, ...] = ("",) * 6
    if interval is not None:
        kind = "ratio" if interval.ratio else "difference"
        bounds = (interval.estimate, interval.low, interval.high)
        shown = (summary.against, kind, *bounds, interval.items)
    return (
        summary.task.name,
        str(summary.task.kind),
        cell.method,
        name,
        cell.metrics.get(name, ""),
        *shown,
        cell.done,
        sum(cell.failed.values()),
        cell.left,
        f"{cell.seconds:.3f}",
        cell.tokens,
        cell.decoded,
    )
