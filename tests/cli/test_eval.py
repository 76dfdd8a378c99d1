"""`eval`: the table, its files, going on after a stop, and errors without text."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from capt_local.errors import ContextOverflow
from tests.cli.conftest import CANARY, Run
from tests.evaluate.fake_runtime import Rules, install


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> Rules:
    """What the fake runtime is to do; tests change it before they run a command."""

    def say(method: str, prompt: str, seed: int) -> str:
        if "prose" in prompt:
            return "5" if method == "capt" else "10"
        return "no" if "note 1" in prompt or method == "capt" else "yes"

    made = Rules(say=say)
    install(monkeypatch, made)
    return made


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    row = {"task": "so", "kind": "classification", "instruction": "Is it so?", "licence": "CC0-1.0",
           "choices": ["yes", "no"]}  # fmt: skip
    rows = [
        {**row, "id": str(n), "input": f"note {n}", "reference": "no" if n == 1 else "yes"}
        for n in range(4)
    ]
    return written(tmp_path / "choices.jsonl", rows)


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    rows = [
        {"id": str(n), "task": "prose", "kind": "perplexity", "text": f"prose {n}", "licence": "x"}
        for n in range(2)
    ]
    return written(tmp_path / "prose.jsonl", rows)


def test_the_table_of_two_kinds(run: Run, rules: Rules, choices: Path, prose: Path) -> None:
    result = run("eval", "{models}", "--task", str(choices), str(prose), "--methods", "capt")
    assert result.code == 0
    assert [" ".join(line.split()) for line in result.out.splitlines() if line] == [
        "Figures",
        "task method figure value against target",
        "so target accuracy 1.000 [1.000, 1.000] -",
        "macro-F1 1.000 [0.500, 1.000] -",
        "capt accuracy 0.250 [0.000, 0.750] -0.750 [-1.000, -0.250]",
        "macro-F1 0.200 [0.000, 0.429] -0.800 [-0.800, -0.500]",
        "prose target bits per byte 2.0610 [2.0610, 2.0610] -",
        "capt bits per byte 1.0305 [1.0305, 1.0305] x0.500 [0.500, 0.500]",
        "Items and cost",
        "task method done failed seconds tokens",
        "so target 4 0 0.0 16",
        "capt 4 0 0.0 16",
        "prose target 2 0 0.0 10",
        "capt 2 0 0.0 10",
        "In brackets 95 % intervals (bootstrap over items). Against the target: "
        "the difference, for bits per",
        "byte the ratio (x), paired.",
    ]
    assert "the target is run too" in result.err


def test_against_another_method(
    run: Run, rules: Rules, choices: Path, prose: Path, tmp_path: Path
) -> None:
    """The difference turns its sign, and nothing is run again."""
    kept = tmp_path / "results"
    tasks = ("eval", "{models}", "--task", str(choices), str(prose), "--json")
    both = (*tasks, "--methods", "target,capt", "--results", str(kept))
    assert run(*both).code == 0
    size = kept.stat().st_size
    result = run(*both, "--against", "capt")
    assert (result.code, kept.stat().st_size) == (0, size)
    found = json.loads(result.out)["tasks"]
    turned = found["so"]["methods"]["target"]["intervals"]["accuracy"]
    assert (found["so"]["against"], turned["estimate"], turned["low"]) == ("capt", 0.75, 0.25)
    assert found["prose"]["methods"]["target"]["intervals"]["bits_per_byte"]["estimate"] == 2.0
    assert not found["so"]["methods"]["capt"]["intervals"]
    alone = run(*tasks, "--methods", "capt", "--against", "expert")
    assert list(json.loads(alone.out)["tasks"]["so"]["methods"]) == ["expert", "capt"]
    assert "the expert is run too" in alone.err


def without_times(out: str) -> Any:
    found = json.loads(out)
    for task in found["tasks"].values():
        for cell in task["methods"].values():
            del cell["seconds"]
    return found


def test_a_stop_loses_nothing(
    run: Run, rules: Rules, choices: Path, prose: Path, tmp_path: Path
) -> None:
    results, samples = tmp_path / "results.jsonl", tmp_path / "samples.jsonl"
    command = ("eval", "{models}", "--task", str(choices), "--task", str(prose), "--json")
    whole = run(*command)
    keep = (*command, "--results", str(results), "--log-samples", str(samples))

    rules.calls.clear()
    rules.press_at = 4
    stopped = run(*keep)
    assert stopped.code == 130
    assert "The same command goes on from here." in stopped.err
    counts = json.loads(stopped.out)["tasks"]["so"]["methods"]["capt"]["counts"]
    assert (counts["done"], counts["left"]) == (1, 3)
    assert json.loads(stopped.out)["interrupted"]
    # Killed while the last result was written: its answers are there already.
    kept = results.read_bytes()
    results.write_bytes(kept[:-20])

    rules.calls.clear()
    rules.press_at = None
    resumed = run(*keep)
    assert resumed.code == 0
    assert "2 of 12 results are there already." in resumed.err
    assert len(rules.calls) == 10
    assert without_times(resumed.out) == without_times(whole.out)
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len({(line["task"], line["method"], line["id"]) for line in lines}) == len(lines) == 12
    assert [stat.S_IMODE(path.stat().st_mode) for path in (results, samples)] == [0o600] * 2
    assert "note" not in results.read_text()

    other = run(*keep, "--alpha", "1", "-n", "9")
    assert other.code == 2
    for name in ("max_tokens", "methods.target.combine.alpha", "methods.capt.combine.alpha"):
        assert name in other.err


def test_a_run_has_one_day(run: Run, rules: Rules, prose: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    command = ("eval", "{models}", "--task", str(prose), "--results", str(results))
    assert run(*command, "--date", "2026-01-31").code == 0
    assert run(*command).code == 0  # another day, but the same run
    assert [str(opened["date"]) for opened in rules.opened] == ["2026-01-31"] * 2
    again = run(*command, "--date", "2026-02-01")
    assert (again.code, "what differs: date." in again.err) == (2, True)


def test_items_that_do_not_fit_are_counted_and_said(run: Run, rules: Rules, choices: Path) -> None:
    usual = rules.say

    def say(method: str, prompt: str, seed: int) -> str:
        if method == "capt" and "note 2" not in prompt:
            raise ContextOverflow({"expert": 300}, 256)
        return usual(method, prompt, seed)

    rules.say = say
    result = run("eval", "{models}", "--task", str(choices))
    assert result.code == 6
    assert result.err.count("an item failed. The text does not fit: expert 300 tokens") == 1
    assert "so, capt: 3 failed (does not fit); its figures are over the other 1." in result.err
    cost = result.out.split("Items and cost")[1].splitlines()
    assert cost[3].split()[:3] == ["capt", "1", "3"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "There is no task"),
        (f"--task choices.jsonl --methods target,{CANARY}", "Number 2 of --methods"),
        ("--task choices.jsonl choices.jsonl", "Tasks 1 and 2 have the same name"),
        (f"--task {CANARY}.jsonl", "Task 1"),
        ("--task choices.jsonl --results choices.jsonl", "--results"),
        ("--task choices.jsonl --log-samples choices.jsonl", "--log-samples"),
        ("--task choices.jsonl --results a --log-samples a", "name the same file"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_anything_runs(
    arguments: str, said: str, run: Run, rules: Rules, choices: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(choices.parent)
    before = choices.read_bytes()
    result = run("eval", "{models}", *arguments.split())
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert said in result.err and CANARY not in result.err and "choices" not in result.err
    assert not rules.calls and not rules.opened
    assert choices.read_bytes() == before


def test_answers_are_written_only_to_the_file_that_was_named(
    run: Run, rules: Rules, choices: Path, tmp_path: Path
) -> None:
    rules.say = lambda method, prompt, seed: f"yes {CANARY}"
    samples = tmp_path / "samples.jsonl"
    there = set(tmp_path.iterdir())
    command = ("eval", "{models}", "--task", str(choices), "--choice", "free", "-v")
    result = run(*command, "--log-samples", str(samples))
    assert result.code == 0
    assert set(tmp_path.iterdir()) - there == {samples}
    first = json.loads(samples.read_text().splitlines()[0])
    assert (first["answer"], first["read"]) == (f"yes {CANARY}", "yes")
    assert CANARY not in result.out + result.err
    again = run(*command, "--log-samples", str(samples))
    assert (again.code, "holds something already" in again.err) == (2, True)
