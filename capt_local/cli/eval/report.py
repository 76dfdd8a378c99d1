"""The results of an evaluation as tables, as a JSON object and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from capt_local.evaluate.figures.intervals import Interval
from capt_local.evaluate.figures.metrics import metrics_of
from capt_local.evaluate.figures.summary import Cell, TaskSummary
from capt_local.report.views import Prose, Table, View

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
_LEGEND = (
    "Against the {against}: the difference, for bits per byte the ratio (x), and its 95 % interval "
    "(paired bootstrap over items)."
)


def views(summaries: Sequence[TaskSummary]) -> list[View]:
    """Figures in one table, a row for each task, method and figure; what they cost in another."""
    against = summaries[0].against
    figures = tuple(row for summary in summaries for row in _figure_rows(summary))
    costs = tuple(row for summary in summaries for row in _cost_rows(summary))
    return [
        Table(
            "Figures",
            _once(figures),
            ("task", "method", "figure", "value", f"against {against}"),
            right=(3, 4),
        ),
        Table(
            "Items and cost",
            _once(costs),
            ("task", "method", "done", "failed", "seconds", "tokens"),
            right=(2, 3, 4, 5),
        ),
        Prose.of(_LEGEND.format(against=against)),
    ]


def _once(rows: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    """The rows without the task and the method where they are those of the row above."""
    shown = []
    for row, above in zip(rows, (("", ""), *rows), strict=False):
        task = "" if row[0] == above[0] else row[0]
        method = "" if row[:2] == above[:2] else row[1]
        shown.append((task, method, *row[2:]))
    return tuple(shown)


def _figure_rows(summary: TaskSummary) -> Iterator[tuple[str, ...]]:
    for cell in summary.cells:
        for name in metrics_of(summary.task):
            digits = 4 if name == "bits_per_byte" else 3
            value = f"{cell.metrics[name]:.{digits}f}" if name in cell.metrics else "-"
            against = cell.intervals.get(name)
            shown = _against(against) if against else "-"
            yield summary.task.name, cell.method, _NAMES[name], value, shown


def _cost_rows(summary: TaskSummary) -> Iterator[tuple[str, ...]]:
    for cell in summary.cells:
        failed = sum(cell.failed.values())
        counts = (f"{cell.done}", f"{failed}", f"{cell.seconds:.1f}", f"{cell.tokens}")
        yield summary.task.name, cell.method, *counts


def _against(interval: Interval) -> str:
    if interval.ratio:
        return f"x{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def notes(summaries: Sequence[TaskSummary]) -> Iterator[str]:
    """What a reader of the table must know, in sentences."""
    for summary in summaries:
        name = summary.task.name
        if summary.cut:
            yield f"{name}: inputs that were cut to --max-input-bytes: {summary.cut}."
        for cell in summary.cells:
            yield from (f"{name}, {cell.method}: {t}" for t in _about(cell, summary.against))


def _about(cell: Cell, against: str) -> Iterator[str]:
    for reason, count in cell.failed.items():
        rest = f"its figures are over the other {cell.done}" if cell.done else "none was done"
        yield f"{count} failed ({reason}); {rest}."
    if cell.unanswered:
        yield f"{cell.unanswered} answers name no choice; they count as wrong."
    if cell.unfinished:
        yield f"{cell.unfinished} answers were ended by --max-tokens or the context."
    paired = [interval.items for interval in cell.intervals.values()]
    if paired and paired[0] < cell.done:
        yield f"intervals are over the {paired[0]} items that the {against} has done too."
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
