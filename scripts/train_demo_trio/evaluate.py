"""Bundles beside each other: bits per byte on prose, and the tasks, by `capt-local eval`.

Writes OUT/BUNDLE.FILE.json (what eval tells), OUT/BUNDLE.FILE.results (so that the same command
goes on after a stop) and OUT/table.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PROSE = ("clinical-prose.test-a", "general-prose.valid")
TASKS = (
    "mts-summary.test1",
    "mts-header.test1",
    "meqsum.test-a",
    "pubmedqa.test-a",
    "rqe.test-a",
    "medqa.test-a",
)
_METHODS = "target,expert,base,capt"
_FIGURES = ("bits_per_byte", "rougeL", "accuracy")
_PROSE_BYTES = "2000"


def _command(bundle: Path, task: Path, out: Path, limit: int | None, threads: int) -> list[str]:
    prose = task.stem in PROSE
    return [
        *(sys.executable, "-m", "capt_local", "eval", "--bundle", str(bundle)),
        *("--task", str(task), "--methods", _METHODS, "--json", "-t", str(threads)),
        *(("--max-input-bytes", _PROSE_BYTES) if prose else ()),
        *(("--limit", str(limit)) if limit else ()),
        *("--results", str(out.with_suffix(".results"))),
    ]


def _rows(bundle: Path, found: dict[str, Any]) -> Iterator[str]:
    for task, told in found["tasks"].items():
        for method, cell in told["methods"].items():
            for figure in _FIGURES:
                if figure not in cell["metrics"]:
                    continue
                gain = cell["intervals"].get(figure)
                against = (
                    f"{gain['estimate']:.3f} [{gain['low']:.3f}, {gain['high']:.3f}]"
                    if gain
                    else ""
                )
                value = cell["metrics"][figure]
                unfinished = cell["counts"].get("unfinished", "")
                yield (
                    f"| {bundle.name} | {task} | {method} | {figure} | {value:.4f} | {against} "
                    f"| {cell['counts']['done']} | {unfinished} |"
                )


def evaluate(
    bundles: Sequence[Path], data: Path, out: Path, limit: int | None, threads: int
) -> None:
    """Every bundle on every file of the evaluation folder that is named here."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        "| bundle | task | method | figure | value | against target [95 %] | items | unfinished |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for bundle in bundles:
        for name in (*PROSE, *TASKS):
            kept = out / f"{bundle.name}.{name.replace('.', '-')}.json"
            command = _command(bundle, data / f"{name}.jsonl", kept, limit, threads)
            ran = subprocess.run(command, stdout=subprocess.PIPE, check=False)
            if ran.returncode not in (0, 6):  # 6: some items do not fit, which the table tells
                raise SystemExit(f"eval ended with {ran.returncode} on {bundle} and {name}")
            kept.write_bytes(ran.stdout)
            lines += _rows(bundle, json.loads(ran.stdout))
            (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(f"{bundle.name}: {name} done", flush=True)
    print("\n".join(lines))
