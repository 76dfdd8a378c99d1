"""`bench` with real files: every mode answers, and the figures belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capt_local.cli.app import run
from capt_local.errors import MemoryShortage
from tests.small_trio import SMALL_TRIO

TASKS = Path(__file__).resolve().parent.parent / "data" / "tasks"
BENCH = ["bench", "-m", str(SMALL_TRIO), "-t", "1"]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The invented note is a few sentences, answered twice."""
    monkeypatch.setattr("capt_local.cli.bench.REPETITIONS", 2)
    monkeypatch.setattr("capt_local.evaluate.bench._INVENTED", 300)


def bench(capfd: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert run([*BENCH, "--json", *flags]) == 0
    told: dict[str, Any] = json.loads(capfd.readouterr().out)
    return told


def test_the_invented_text_in_all_modes(capfd: pytest.CaptureFixture[str]) -> None:
    told = bench(capfd, "-n", "6")
    modes = told["modes"]
    assert {"target", "exact-steps", "llama"} <= set(modes)
    for name, mode in modes.items():
        assert mode["generate_tokens_per_s"] > 0 and mode["prefill_tokens_per_s"] > 0
        assert mode["tokens"] <= 10
        if name not in ("target", "llama", "exact-steps"):
            assert mode["compared_with"] == "exact-steps"
            assert name == "fast" or mode["same_answers"] == 2
            assert mode["outside_decode_ms_per_token"] > 0
    assert modes["exact-steps"]["positions_per_token"]["target"] == 1.0
    assert modes["target"]["positions_per_token"] == {"target": 1.0, "expert": 0.0, "base": 0.0}
    # The binding's own greedy answer is that of the target alone.
    assert (modes["llama"]["same_answers"], modes["llama"]["compared_with"]) == (2, "target")
    assert set(told["ratios"]) == {
        *("target/llama", "exact-steps/target", "auto/target", "auto/exact-steps"),
        *("fast/target", "fast/exact-steps"),
    }
    assert all(ratio["median"] > 0 and ratio["pairs"] == 2 for ratio in told["ratios"].values())
    assert told["model_bytes"].keys() == {"target", "expert", "base"}
    assert told["provenance"]["bundle"]["id"] == "demo-tests" and told["threads"] == 1


def test_prompts_side_by_side_get_the_same_answers(capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--prompts", str(TASKS / "summary.jsonl"), "--modes", "target,exact-steps"]
    told = bench(capfd, *flags, "--limit", "2", "-n", "6", "--parallel", "2")
    side = told["modes"]["many-2"]
    assert side["answers"] == 2 and side["requests_per_s"] > 0
    assert told["memory_bytes"] > 0
    assert side["same_answers"] == 2  # so short that no two tokens come near each other
    assert told["ratios"].keys() == {"exact-steps/target", "many-2/exact-steps"}
    assert told["prompts"] == {"measured": 2, "too_long": []}
    assert told["workload"] == {"kind": "prompts", "max_tokens": 6}
    assert run([*BENCH, *flags, "--limit", "1", "--parallel", "2"]) == 2


def test_where_no_second_copy_fits_llama_is_left_out_and_said(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise MemoryShortage("Not enough memory.")

    monkeypatch.setattr("capt_local.llama.load_models.PlainLlama", none)
    flags = [*BENCH, "--json", "-n", "2"]
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

    monkeypatch.setattr("capt_local.cli.exits.Interrupt.__call__", cancel)
    assert run([*BENCH, "--modes", "target"]) == 130
