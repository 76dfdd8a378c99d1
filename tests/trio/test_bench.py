"""`bench` with the real demo trio: every mode answers, and the figures belong together."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from capt_local.cli.app import run
from capt_local.errors import MemoryShortage
from capt_local.evaluate.speed.replay.files import read_trace

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
        if name not in ("target", "llama"):
            assert mode["forwards_per_token"].keys() == {"target", "expert", "base"}
        if name not in ("target", "llama", "exact-steps"):
            assert mode["compared_with"] == "exact-steps" and mode["same_answers"] == 2
            assert mode["gated"] is not None and mode["drafts"]["drafted"] >= 0
    assert modes["exact-steps"]["forwards_per_token"]["target"] == 1.0
    assert modes["target"]["forwards_per_token"] == {"target": 1.0, "expert": 0.0, "base": 0.0}
    # The binding's own greedy answer is that of the target alone.
    assert (modes["llama"]["same_answers"], modes["llama"]["compared_with"]) == (2, "target")
    assert told["ratios"]["exact-steps/target"] > 0 and told["ratios"]["auto/exact-steps"] > 0
    assert "target/exact-steps" not in told["ratios"]
    assert told["batches"].keys() == {"target", "expert", "base"}
    usual = {*map(str, range(1, 9)), "16"}
    for role, batches in told["batches"].items():
        came = {size for mode in modes.values() for size in mode["forwards_by_size"].get(role, ())}
        assert set(batches["relative"]) == usual | came
    assert modes["exact-steps"]["forwards_by_size"]["target"] == {"1": 1.0}
    for mode in modes.values():
        spent = {
            role: sum(
                count * told["batches"][role]["one_token_ms"] * told["batches"][role]["relative"][n]
                for n, count in sizes.items()
            )
            for role, sizes in mode["forwards_by_size"].items()
            if sizes
        }
        assert mode["bound"]["ms_per_token"] == pytest.approx(spent)
    assert told["model_bytes"].keys() == {"target", "expert", "base"}
    assert told["provenance"]["bundle"]["id"] == "demo" and told["threads"] == 1


def test_a_task_of_eval_is_measured_on(capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--prompts", str(TASKS / "summary.jsonl"), "--modes", "target,exact-steps"]
    told = bench(capfd, *flags, "--limit", "2", "-n", "4")
    assert list(told["modes"]) == ["target", "exact-steps"]
    assert told["prompts"] == {"measured": 2, "too_long": []}
    assert told["workload"] == {"kind": "prompts", "max_tokens": 4, "trace": None}


def test_prompts_side_by_side_get_the_same_answers(capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--prompts", str(TASKS / "summary.jsonl"), "--modes", "target,exact-steps"]
    told = bench(capfd, *flags, "--limit", "2", "-n", "6", "--parallel", "2")
    side = told["modes"]["parallel-2"]
    assert (side["groups"], side["compared_answers"]) == (1, 2)
    assert 0 < told["memory_over_bytes"] <= told["memory_bytes"] - side["lanes_memory_bytes"]
    assert side["same_answers"] == 2  # so short that no two tokens come near each other
    assert told["ratios"].keys() == {
        *("exact-steps/target", "parallel-2/target", "parallel-2/exact-steps"),
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


def test_a_recorded_run_drives_other_models(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What batches cost decides how long drafts are; a busy machine would measure two things.
    monkeypatch.setattr("capt_local.decoding.stopwatch.Stopwatch.time", lambda *_: None)
    trace = tmp_path / "trace.jsonl"
    prompts = ["--prompts", str(TASKS / "summary.jsonl"), "-n", "16"]
    assert run(["bench", "-t", "1", *prompts, "--limit", "2", "--record", str(trace)]) == 0
    assert "2 answers of" in capfd.readouterr().err
    assert stat.S_IMODE(trace.stat().st_mode) == 0o600
    recorded = read_trace(trace, "The trace")
    modes = ["--modes", "target,exact-steps,auto,lookup,target-draft,expert-draft,llama"]
    told = bench(capfd, "--replay", str(trace), *modes)
    assert told["workload"]["kind"] == "replay"
    assert told["workload"]["trace"]["tokens"] == recorded.places
    steps = sum(len(one.places) - 1 for one in recorded.answers)
    for name, mode in told["modes"].items():
        assert mode["tokens"] == steps, name  # as many as were recorded, whatever models say
    # Driven through its own run a trio drafts what it drafted then.
    real = bench(capfd, *prompts, "--limit", "2", "--modes", "exact-steps,lookup,target-draft")
    for name in ("lookup", "target-draft"):
        was, driven = real["modes"][name]["drafts"], told["modes"][name]["drafts"]
        assert driven["by_source"] == was["by_source"], name
    assert bench(capfd, "--replay", str(trace), "--limit", "1", "-n", "5", *modes[:1], "auto")[
        "workload"
    ]["trace"] == {**told["workload"]["trace"], "answers": 1, "tokens": 5, "own": ANY}


@pytest.mark.parametrize("percent", ["60", "75", "87"])
def test_answers_by_chance_drive_a_trio(percent: str, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["-n", "20", "-r", "1", "--prompt-tokens", "64", "--modes", "target,target-draft"]
    told = bench(capfd, "--replay", percent, *flags)
    trace = told["workload"]["trace"]
    assert trace["own"] == pytest.approx(int(percent) / 100, abs=0.03)
    assert trace["tokens"] == 20
    drafts = told["modes"]["target-draft"]["drafts"]
    assert list(drafts["by_source"]) == ["target-draft"]
    assert 0 < drafts["accepted"] <= drafts["drafted"]


def test_a_trace_longer_than_the_context_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "-t", "1", "-c", "128", "--replay", "75"]) == 2
    assert "--ctx-size" in capfd.readouterr().err


def test_where_no_second_copy_fits_llama_is_left_out_and_said(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise MemoryShortage("Not enough memory.")

    monkeypatch.setattr("capt_local.cli.bench.modes.PlainLlama", none)
    flags = ["bench", "-t", "1", "--json", "-n", "3", "-r", "1", "--prompt-tokens", "16"]
    assert run([*flags, "--modes", "target,llama"]) == 0
    told = capfd.readouterr()
    assert list(json.loads(told.out)["modes"]) == ["target"]
    assert "llama is left out" in told.err
    assert run([*flags, "--modes", "llama"]) == 4


def test_ctrl_c_ends_a_run_in_the_middle_of_an_answer(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = iter(range(1000))

    def cancel(_: object) -> bool:
        return next(asked) > 5

    monkeypatch.setattr("capt_local.cli.signals.Interrupt.__call__", cancel)
    assert run(["bench", "-t", "1", "--modes", "target", "--prompt-tokens", "16"]) == 130
    trace = tmp_path / "trace.jsonl"
    asked = iter(range(1000))
    assert run(["bench", "-t", "1", "--record", str(trace), "--prompt-tokens", "16"]) == 130
    assert not trace.exists() and not capfd.readouterr().out
