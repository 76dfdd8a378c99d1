"""`eval` with real files: what must be the same is the same, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capt_local.cli.app import run
from tests.small_trio import SMALL_TRIO

TASKS = Path(__file__).resolve().parent.parent / "data" / "tasks"
COMMAND = [
    *("eval", "-m", str(SMALL_TRIO), "-t", "1", "--json", "-n", "6"),
    *(
        part
        for name in ("prose", "section", "summary")
        for part in ("--task", f"{TASKS / name}.jsonl")
    ),
]


def figures(out: str) -> dict[str, Any]:
    """Everything but the times."""
    tasks: dict[str, Any] = json.loads(out)["tasks"]
    for task in tasks.values():
        for cell in task["methods"].values():
            assert cell.pop("seconds") > 0
    return tasks


def test_a_resumed_run_is_the_run_to_the_last_bit(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    journal = tmp_path / "results.jsonl"
    keep = [*COMMAND, "--results", str(journal)]
    assert run(keep) == 0
    whole = figures(capfd.readouterr().out)
    lines = journal.read_bytes().splitlines(keepends=True)
    # Every second result is lost, as no stop would do it: each stands by itself.
    journal.write_bytes(b"".join([lines[0], *lines[1::2]]))
    assert run(keep) == 0
    assert figures(capfd.readouterr().out) == whole
    assert run([*keep, "--plausibility", "1e-4"]) == 2
    assert "methods.capt.combine.plausibility" in capfd.readouterr().err


def test_without_a_contrast_it_is_the_target(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*COMMAND, "--alpha", "0"]) == 0
    for task in figures(capfd.readouterr().out).values():
        target, capt = task["methods"]["target"], task["methods"]["capt"]
        assert capt["counts"] == target["counts"] and target["counts"]["failed"] == {}
        assert capt["metrics"] == pytest.approx(target["metrics"], rel=1e-5)
        for interval in capt["intervals"].values():
            same = 1.0 if interval["kind"] == "ratio" else 0.0
            ends = [interval[name] for name in ("low", "estimate", "high")]
            assert ends == pytest.approx([same] * 3, abs=1e-5)


def test_the_expert_predicts_clinical_prose_better(capfd: pytest.CaptureFixture[str]) -> None:
    place = str(TASKS / "prose.jsonl")
    command = ["eval", "-t", "1", "--json", "--task", place, "--methods", "expert,capt"]
    assert run(command) == 0
    out, err = capfd.readouterr()
    assert "the target is run too" in err
    methods = figures(out)["prose"]["methods"]
    assert list(methods) == ["target", "expert", "capt"]
    bits = {name: cell["metrics"]["bits_per_byte"] for name, cell in methods.items()}
    assert max(bits["expert"], bits["capt"]) < bits["target"]
    ratio = methods["capt"]["intervals"]["bits_per_byte"]
    assert ratio["estimate"] == pytest.approx(bits["capt"] / bits["target"])
    assert ratio["low"] <= ratio["estimate"] <= ratio["high"]
