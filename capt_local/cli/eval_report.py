"""The results of an evaluation as tables, as a JSON object and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from capt_local.evaluate.intervals import Interval
from capt_local.evaluate.items import Measure
from capt_local.evaluate.metrics import metrics_of
from capt_local.evaluate.summary import TARGET, Cell, TaskSummary
from capt_local.report.view import Table

_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "exact_match": "exact",
    "token_f1": "token F1",
    "bits_per_byte": "bits per byte",
}
_TITLES = {
    Measure.CHOICE: "Classification",
    Measure.ROUGE: "Generation",
    Measure.SPAN: "Spans",
    Measure.LABELS: "Labels",
    Measure.BITS: "Prose",
}


def tables(summaries: Sequence[TaskSummary]) -> list[Table]:
    """One table for each way of measuring, a row for each task and method.

    An interval stands behind its figure: of the difference to the target, for bits per byte of
    the ratio.
    """
    measures = dict.fromkeys(summary.task.measure for summary in summaries)
    return [
        _table(measure, [s for s in summaries if s.task.measure is measure]) for measure in measures
    ]


def _table(measure: Measure, summaries: Sequence[TaskSummary]) -> Table:
    metrics = max((metrics_of(summary.task) for summary in summaries), key=len)
    against = "over target" if measure is Measure.BITS else "minus target"
    heading = ["task", "method"]
    for name in metrics:
        heading += [_NAMES[name], f"{against}, 95 %"]
    heading += ["items", "failed", "seconds", "tokens"]
    rows = tuple(
        (
            summary.task.name,
            cell.method,
            *(text for name in metrics for text in _figures(cell, name)),
            f"{cell.done}",
            f"{sum(cell.failed.values())}",
            f"{cell.seconds:.1f}",
            f"{cell.tokens}",
        )
        for summary in summaries
        for cell in summary.cells
    )
    # Intervals may be folded where the terminal is narrow; figures never are.
    figures = (*range(2, 2 + 2 * len(metrics), 2), *range(2 + 2 * len(metrics), len(heading)))
    return Table(_TITLES[measure], rows, tuple(heading), right=figures)


def _figures(cell: Cell, name: str) -> tuple[str, str]:
    if name not in cell.metrics:
        return "-", "-"
    digits = 4 if name == "bits_per_byte" else 3
    interval = cell.intervals.get(name)
    value = f"{cell.metrics[name]:.{digits}f}"
    if interval is None:
        return value, "-"
    sign = "" if interval.ratio else "+"
    ends = f"[{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"
    return value, f"{interval.estimate:{sign}.3f} {ends}"


def notes(summaries: Sequence[TaskSummary]) -> Iterator[str]:
    """What a reader of the table must know, in sentences."""
    for summary in summaries:
        task, name = summary.task, summary.task.name
        if summary.cut:
            of_all = f"{summary.cut} of {len(task.items)}"
            yield f"{name}: {of_all} inputs were cut to --max-input-bytes."
        for cell in summary.cells:
            yield from (f"{name}, {cell.method}: {text}" for text in _about(cell))


def _about(cell: Cell) -> Iterator[str]:
    for reason, count in cell.failed.items():
        yield f"{count} failed ({reason}); its figures are over the other {cell.done}."
    if cell.unanswered:
        yield f"{cell.unanswered} answers name no choice; they count as wrong."
    if cell.unfinished:
        yield f"{cell.unfinished} answers were ended by --max-tokens or the context."
    paired = [interval.items for interval in cell.intervals.values()]
    if paired and paired[0] < cell.done:
        yield f"intervals are over the {paired[0]} items that the target has done too."
    if cell.left:
        yield f"{cell.left} items were not run."


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
        "methods": {cell.method: _cell(cell) for cell in summary.cells},
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "metrics": dict(cell.metrics),
        "intervals": {name: _interval(interval) for name, interval in cell.intervals.items()},
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


def _interval(interval: Interval) -> dict[str, Any]:
    return {
        "against": TARGET,
        "kind": "ratio" if interval.ratio else "difference",
        "estimate": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "items": interval.items,
    }


_CSV = (
    *("task", "kind", "method", "metric", "value"),
    *("against_target", "estimate", "low", "high", "paired_items"),
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
    against: tuple[object, ...] = ("",) * 5
    if interval is not None:
        kind = "ratio" if interval.ratio else "difference"
        against = (kind, interval.estimate, interval.low, interval.high, interval.items)
    return (
        summary.task.name,
        str(summary.task.kind),
        cell.method,
        name,
        cell.metrics.get(name, ""),
        *against,
        cell.done,
        sum(cell.failed.values()),
        cell.left,
        f"{cell.seconds:.3f}",
        cell.tokens,
        cell.decoded,
    )
