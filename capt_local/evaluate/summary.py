"""Results summed up: what each method reaches, and how surely it differs from one of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from capt_local.evaluate.intervals import Interval, compare, figures
from capt_local.evaluate.results import Result
from capt_local.evaluate.tasks import EvalTask

TARGET = "target"


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
