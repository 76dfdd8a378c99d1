"""`eval` on folders of the licensed layouts (made-up rows), with the examples that they name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.evaluate.fake_runtime import Rules, install

DATA = Path(__file__).parent.parent / "data" / "tasks"


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> Rules:
    def say(method: str, prompt: str, seed: int) -> str:
        if "hypothesis" in prompt:
            return "neutral"
        return "Unanswerable." if "radiology" in prompt else "Lab, appointment"

    made = Rules(say=say)
    install(monkeypatch, made)
    return made


def test_the_three_layouts(run: Run, rules: Rules) -> None:
    places = [str(DATA / name) for name in ("mednli", "radqa", "clip")]
    result = run("eval", "{models}", "--task", *places, "--methods", "target", "--json")
    assert result.code == 0
    tasks = json.loads(result.out)["tasks"]
    figures = {name: task["methods"]["target"]["metrics"] for name, task in tasks.items()}
    assert figures["mednli"]["accuracy"] == pytest.approx(1 / 3)
    assert figures["radqa"] == pytest.approx({"exact_match": 1 / 3, "token_f1": 1 / 3})
    # Three sentences; two labels are right, four are false, one is missed.
    assert figures["clip"]["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 4 + 1))


def test_examples_of_the_folder_are_shown(run: Run, rules: Rules) -> None:
    place = str(DATA / "mednli")
    arguments = ("eval", "{models}", "--task", place, "--methods", "target")
    assert run(*arguments, "--style", "few-shot", "--shots", "1", "--shots-by", "nearest").code == 0
    prompts = [prompt for _, _, prompt, _ in rules.calls]
    assert any("No fever was noted" in prompt for prompt in prompts)


def test_examples_that_are_not_there_are_only_missed_when_they_are_wanted(
    run: Run, rules: Rules, tmp_path: Path
) -> None:
    place = tmp_path / "task"
    shutil.copytree(DATA / "mednli", place)
    (place / "mli_train_v1.jsonl").unlink()
    arguments = ("eval", "{models}", "--task", str(place), "--methods", "target")
    assert run(*arguments).code == 0
    result = run(*arguments, "--shots", "1")
    assert result.code == 2
    assert "Task 1, task.toml: examples.file names a file that is not there" in result.err
