"""`bench` with the real demo trio: every mode answers, and the figures belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capt_local.cli.app import run
from capt_local.errors import MemoryShortage

TASKS = Path(__file__).resolve().parent.parent / "data" / "tasks"


def bench(capfd: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert run(["bench", "-t", "1", "--json", *flags]) == 0
    told: dict[str, Any] = json.loads(capfd.readouterr().out)
    return told


def test_the_invented_text_in_all_modes(capfd: pytest.CaptureFixture[str]) -> None:
    told = bench(capfd, "-n", "8", "-r", "2", "--prompt-tokens", "64")
    modes = told["modes"]
    assert {"target", "exact-steps", "llama"} <= set(modes)
    for name, mode in modes.items():
        assert mode["generate_tokens_per_s"] > 0 and mode["prefill_tokens_per_s"] > 0
        assert mode["tokens"] <= 14
        if name not in ("target", "llama", "exact-steps"):
            assert mode["compared_with"] == "exact-steps" and mode["same_answers"] == 2
    assert modes["exact-steps"]["positions_per_token"]["target"] == 1.0
    assert modes["target"]["positions_per_token"] == {"target": 1.0, "expert": 0.0, "base": 0.0}
    # The binding's own greedy answer is that of the target alone.
    assert (modes["llama"]["same_answers"], modes["llama"]["compared_with"]) == (2, "target")
    assert told["ratios"]["exact-steps/target"] > 0 and told["ratios"]["auto/exact-steps"] > 0
    assert "target/exact-steps" not in told["ratios"]
    assert told["model_bytes"].keys() == {"target", "expert", "base"}
    assert told["provenance"]["bundle"]["id"] == "demo" and told["threads"] == 1


def test_a_task_of_eval_is_measured_on(capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--prompts", str(TASKS / "summary.jsonl"), "--modes", "target,exact-steps"]
    told = bench(capfd, *flags, "--limit", "2", "-n", "4")
    assert list(told["modes"]) == ["target", "exact-steps"]
    assert told["prompts"] == {"measured": 2, "too_long": []}
    assert told["workload"] == {"kind": "prompts", "max_tokens": 4}


def test_prompts_side_by_side_get_the_same_answers(capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--prompts", str(TASKS / "summary.jsonl"), "--modes", "target,exact-steps"]
    told = bench(capfd, *flags, "--limit", "2", "-n", "6", "--parallel", "2")
    side = told["modes"]["many-2"]
    assert (side["groups"], side["compared_answers"]) == (1, 2)
    assert told["memory_bytes"] > 0
    assert side["same_answers"] == 2  # so short that no two tokens come near each other
    assert told["ratios"].keys() == {
        *("exact-steps/target", "many-2/exact-steps"),
    }
    assert run(["bench", "-t", "1", *flags, "--limit", "1", "--parallel", "2"]) == 2


def test_several_files_are_measured_on_together(capfd: pytest.CaptureFixture[str]) -> None:
    files = [f"{TASKS / name}.jsonl" for name in ("summary", "section")]
    flags = [part for file in files for part in ("--prompts", file)]
    told = bench(capfd, *flags, "--limit", "1", "-n", "4", "--modes", "target")
    assert told["prompts"]["measured"] == 2


def test_a_prompt_that_does_not_fit_is_left_out_and_told(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": "word " * n}) + "\n" for n in (900, 3)))
    flags = ["-c", "128", "--prompts", str(path), "--raw", "--modes", "target", "-n", "4"]
    assert bench(capfd, *flags)["prompts"] == {"measured": 1, "too_long": [1]}


def test_a_context_without_room_for_the_invented_text(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "-t", "1", "-c", "128", "--modes", "target"]) == 2
    assert "--prompt-tokens" in capfd.readouterr().err


def test_where_no_second_copy_fits_llama_is_left_out_and_said(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise MemoryShortage("Not enough memory.")

    monkeypatch.setattr("capt_local.cli.bench.PlainLlama", none)
    flags = ["bench", "-t", "1", "--json", "-n", "3", "-r", "1", "--prompt-tokens", "16"]
    assert run([*flags, "--modes", "target,llama"]) == 0
    told = capfd.readouterr()
    assert list(json.loads(told.out)["modes"]) == ["target"]
    assert "llama is left out" in told.err
    assert run([*flags, "--modes", "llama"]) == 4


def test_ctrl_c_ends_a_run_in_the_middle_of_an_answer(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter(range(1000))

    def cancel(_: object) -> bool:
        return next(asked) > 5

    monkeypatch.setattr("capt_local.cli.signals.Interrupt.__call__", cancel)
    assert run(["bench", "-t", "1", "--modes", "target", "--prompt-tokens", "16"]) == 130
