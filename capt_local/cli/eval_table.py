"""The table of `eval`, and what its reader must know besides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from capt_local.evaluate.metrics import metrics_of
from capt_local.evaluate.summary import Interval, MethodFigures, TaskSummary
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
    "In brackets 95 % intervals (bootstrap over items). Against the {against}: the difference, for "
    "bits per byte the ratio (x), paired."
)


def views(summaries: Sequence[TaskSummary]) -> list[View]:
    """Figures in one table, a row for each task, method and figure; what they cost in another."""
    against = summaries[0].against
    figures, costs = [], []
    for summary in summaries:
        name = summary.task.name
        for method, one in summary.methods.items():
            for metric in metrics_of(summary.task):
                digits = 4 if metric == "bits_per_byte" else 3
                value = "-"
                if spread := one.values.get(metric):
                    low, high = f"{spread.low:.{digits}f}", f"{spread.high:.{digits}f}"
                    value = f"{spread.estimate:.{digits}f} [{low}, {high}]"
                interval = one.intervals.get(metric)
                shown = _comparison(interval) if interval else "-"
                figures.append((name, method, _NAMES.get(metric, metric), value, shown))
            failed = sum(one.counts.failed.values())
            cost = f"{one.counts.done}", f"{failed}", f"{one.seconds:.1f}", f"{one.tokens}"
            costs.append((name, method, *cost))
    headings = ("task", "method", "figure", "value", f"against {against}")
    counts = ("task", "method", "done", "failed", "seconds", "tokens")
    return [
        Table("Figures", _once(figures), headings, right=(3, 4)),
        Table("Items and cost", _once(costs), counts, right=(2, 3, 4, 5)),
        Prose.of(_LEGEND.format(against=against)),
    ]


def _once(rows: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """The rows without the task and the method where they are those of the row above."""
    shown = []
    for row, above in zip(rows, (("", ""), *rows), strict=False):
        task = "" if row[0] == above[0] else row[0]
        method = "" if row[:2] == above[:2] else row[1]
        shown.append((task, method, *row[2:]))
    return tuple(shown)


def _comparison(interval: Interval) -> str:
    if interval.kind == "ratio":
        return f"x{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def notes(summaries: Sequence[TaskSummary]) -> Iterator[str]:
    """What a reader of the table must know, in sentences."""
    for summary in summaries:
        name = summary.task.name
        if cut := summary.task.cut:
            yield f"{name}: inputs that were cut to --max-input-bytes: {len(cut)}."
        for method, one in summary.methods.items():
            yield from (f"{name}, {method}: {note}" for note in _about(one, summary.against))


def _about(one: MethodFigures, against: str) -> Iterator[str]:
    counts = one.counts
    for reason, count in counts.failed.items():
        rest = f"its figures are over the other {counts.done}" if counts.done else "none was done"
        yield f"{count} failed ({reason}); {rest}."
    if counts.unanswered:
        yield f"{counts.unanswered} answers name no choice; they count as wrong."
    if counts.unfinished:
        yield f"{counts.unfinished} answers were ended by --max-tokens or the context."
    paired = [interval.items for interval in one.intervals.values()]
    if paired and paired[0] < counts.done:
        yield f"intervals are over the {paired[0]} items that the {against} has done too."
    if counts.left:
        yield f"{counts.left} items were not run."
