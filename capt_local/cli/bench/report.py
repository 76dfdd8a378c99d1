"""What a bench has found: as a JSON object, and as a table with what explains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from capt_local.cli.bench.work import Workload
from capt_local.evaluate.speed.batches import SIZES
from capt_local.evaluate.speed.figures import Ratio
from capt_local.evaluate.speed.result import ALONE, STEPS, SpeedResult
from capt_local.evaluate.speed.same import Sameness
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Table

_ROLES = ("target", "expert", "base")
_NONE = "-"


@dataclass(frozen=True, slots=True)
class Report:
    """All that is told of a run.

    Attributes:
        result: the figures.
        work: what they were measured on.
        threads: of the CPU.
        memory: bytes of the process, and those beyond model files, KV caches and lanes.
        sizes: bytes of the weights, by role.
        provenance: versions, models, options.
    """

    result: SpeedResult
    work: Workload
    threads: int
    memory: tuple[int, int]
    sizes: Mapping[str, int]
    provenance: Mapping[str, Any]

    def as_object(self) -> dict[str, Any]:
        """For a script."""
        resident, over = self.memory
        return {
            **self.result.as_object(),
            "workload": {
                "kind": self.work.kind,
                "max_tokens": self.work.most,
                "trace": None if self.work.trace is None else self.work.trace.as_object(),
            },
            "threads": self.threads,
            "memory_bytes": resident,
            "memory_over_bytes": over,
            "model_bytes": dict(self.sizes),
            "provenance": dict(self.provenance),
        }


def tell(screen: Screen, report: Report, *, json: bool) -> None:
    """Writes the report on standard output."""
    if json:
        screen.line(dumps(report.as_object()))
        return
    screen.show(_table(report))
    result = report.result
    for line in (*_bounds(result), *_side(result), *_same(result), *_rest(report)):
        screen.line(line)


def _table(report: Report) -> Table:
    first, second = "prompt t/s", "answer t/s"
    if report.work.invented:  # as llama-bench calls it
        first, second = f"pp{report.result.prompt_tokens} t/s", f"tg{report.work.most} t/s"
    headings = (
        "mode", first, second, "x target", "x steps", "forwards T/E/B", "right", "gated", "outside"
    )  # fmt: skip
    rows = tuple(_row(report.result, name) for name in report.result.figures)
    return Table("", rows, headings, right=tuple(range(1, len(headings))))


def _row(result: SpeedResult, name: str) -> tuple[str, ...]:
    found, ratios = result.figures[name], result.ratios
    forwards = "/".join(f"{found.passes[role]:.2f}" for role in _ROLES if role in found.passes)
    return (
        name,
        _NONE if found.prefill is None else f"{found.prefill:.1f} ± {found.prefill_spread:.1f}",
        _NONE if found.rate is None else f"{found.rate:.1f} ± {found.rate_spread:.1f}",
        _times(ratios.get(f"{name}/{ALONE}")),
        _times(ratios.get(f"{name}/{STEPS}")),
        forwards or _NONE,
        _share(found.acceptance),
        _share(found.gated),
        _NONE if found.outside_ms is None else f"{found.outside_ms:.2f} ms",
    )


def _times(ratio: Ratio | None) -> str:
    return _NONE if ratio is None else f"{ratio.median:.2f}"


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0%}"


def _bounds(result: SpeedResult) -> Iterator[str]:
    """What each ratio is made of."""
    for role, cost in result.costs.items():
        more = ", ".join(
            f"{size} {cost.relative[size]:.2f}" for size in SIZES[1:] if size in cost.relative
        )
        yield f"{role}: one token {1000 * cost.one:.2f} ms; over that, batches of {more}"
    for name, figures in result.figures.items():
        ratio, limit = result.ratios.get(f"{name}/{ALONE}"), result.bound(name)
        if ratio is None:
            continue
        line = (
            f"{name}/{ALONE}: {ratio.median:.3f}, middle half {ratio.low:.3f} to {ratio.high:.3f} "
            f"of {ratio.pairs}"
        )
        if limit is not None:
            each = " + ".join(f"{role} {1000 * s:.2f}" for role, s in limit.seconds.items())
            line += f"; its forwards cost {each} ms a token, which allows {limit.ratio:.2f}"
        if figures.acceptance is not None and figures.drafts is not None:
            line += f"; {figures.drafts.accepted} of {figures.drafts.drafted} drafted tokens right"
        yield line


def _side(result: SpeedResult) -> Iterator[str]:
    for name, figures in result.side.items():
        over = ", ".join(f"{r.median:.2f} x {other}" for other, r in figures.ratios.items())
        yield (
            f"{name}: {figures.requests:.2f} requests/s, {figures.rate:.1f} tokens/s with their "
            f"prompts: {over}, in {figures.groups} groups; lanes of {figures.memory / 1e6:,.0f} MB"
        )


def _same(result: SpeedResult) -> Iterator[str]:
    side = {name: each.same for name, each in result.side.items() if each.same is not None}
    for name, same in {**result.same, **side}.items():
        yield f"{name}: {same.same} of {same.answers} answers as {same.reference}"
        yield from _differences(same)


def _differences(same: Sameness) -> Iterator[str]:
    if same.shift is not None:
        yield (
            f"  scores of the same tokens differ by {same.shift.median:.1e} (median), "
            f"{same.shift.largest:.1e} (largest) nats"
        )
    for one in same.differences:
        scores = "scores not found again"
        if one.reference is not None:
            here = "" if one.mode is None else f", here {one.mode[0]:.6f} {one.mode[1]:.6f}"
            sign = "" if one.explained(same.shift) else "not "
            scores = f"{one.reference[0]:.6f} {one.reference[1]:.6f}{here}: {sign}batch arithmetic"
        first, second = ("end" if token is None else str(token) for token in one.tokens)
        yield f"  prompt {one.prompt}, step {one.step}: token {first} or {second}; {scores}"


def _rest(report: Report) -> Iterator[str]:
    result, (resident, over) = report.result, report.memory
    if (trace := report.work.trace) is not None:
        yield (
            f"trace: {trace.source}, {len(trace.answers)} answers of {trace.places} tokens, "
            f"{trace.share('own'):.0%} of them the target's own, {trace.share('gated'):.0%} gated"
        )
    if result.too_long:
        yield f"{len(result.too_long)} prompts do not fit into the context and were left out."
    beyond = "model files, KV caches and lanes" if result.side else "model files and KV caches"
    yield (
        f"{result.prompts} prompts, answers of at most {report.work.most} tokens; "
        f"threads: {report.threads}; memory {resident / 1e6:,.0f} MB, "
        f"{over / 1e6:,.0f} MB of it over {beyond}"
    )
