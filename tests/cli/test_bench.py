"""The flags of `bench`, found wrong before any model is loaded, and what it tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capt_local.bundle.manifest import Bundle
from capt_local.bundle.store import find
from capt_local.cli.bench.flags import BenchFlags
from capt_local.cli.bench.modes import chosen_modes
from capt_local.cli.bench.report import Report, tell
from capt_local.cli.bench.work import Workload, given_trace
from capt_local.decoding.options import GenerateOptions, Method, SampleOptions, Speed
from capt_local.errors import UsageError
from capt_local.evaluate.speed.batches import BatchCost
from capt_local.evaluate.speed.figures import figures, ratios
from capt_local.evaluate.speed.replay.files import as_lines
from capt_local.evaluate.speed.replay.synthetic import synthetic
from capt_local.evaluate.speed.result import SpeedResult
from capt_local.evaluate.speed.same import Difference, Sameness, Shift
from capt_local.evaluate.speed.taken import Drafts
from capt_local.report.terminal import Screen
from tests.cli.conftest import Run
from tests.cli.fake_runtime import Script
from tests.evaluate.speed.answers import taken, turns

CANARY = "PATIENT-CANARY"


@pytest.fixture
def alone(tmp_path: Path) -> Bundle:
    path = tmp_path / "target.gguf"
    path.write_bytes(b"GGUF")
    return Bundle.from_paths(path)


def test_all_modes_are_those_of_the_bundle(alone: Bundle) -> None:
    options = GenerateOptions(max_tokens=5)
    assert list(chosen_modes(None, alone, options)) == ["target", "llama"]
    whole = chosen_modes(None, find("demo"), options)
    assert list(whole)[:2] == ["target", "exact-steps"] and list(whole)[-1] == "llama"
    assert set(whole) == {"target", "llama", *Speed}
    assert whole["target"].method is Method.TARGET and whole["exact-steps"].method is Method.CAPT
    # Alone, the target is what llama.cpp is: nothing is drafted for it.
    assert whole["target"].speed is whole["exact-steps"].speed is Speed.EXACT_STEPS
    assert whole["lookup"].speed is Speed.LOOKUP
    drawn = GenerateOptions(sample=SampleOptions(temperature=1.0))
    assert list(chosen_modes(None, alone, drawn)) == ["target"]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ("target,fast", "Number 2 of --modes"),
        ("target, target", "target twice"),
        ("", "Number 1"),
        ("target,exact-steps", "Number 2 of --modes is none of this run"),
    ],
)
def test_modes_that_are_none_are_refused(names: str, problem: str, alone: Bundle) -> None:
    with pytest.raises(UsageError, match=problem):
        chosen_modes(names, alone, GenerateOptions())


@pytest.mark.parametrize(
    "flags",
    [
        ["--limit", "3"],
        ["--raw"],
        ["--max-input-bytes", "9"],
        ["--prompts", "{prompts}", "-r", "2"],
        ["--prompts", "{prompts}", "--prompt-tokens", "2"],
        ["--prompts", "{broken}"],
        ["--prompts", "{missing}"],
        ["--modes", "llama,fast"],
        ["--limit", "0"],
        ["--replay", "75", "--prompts", "{prompts}"],
        ["--replay", "75", "--record", "{broken}"],
        ["--replay", "75", "--raw"],
        ["--replay", "75", "--temp", "1"],
        ["--replay", "75", "--limit", "2"],
        ["--replay", "75", "-n", "0"],
        ["--replay", "{trace}", "-n", "-1"],
        ["--replay", "{trace}", "-r", "2"],
        ["-n", "0"],
        ["--replay", "{prompts}"],
        ["--replay", "{missing}"],
        ["--replay", "76"],
        ["--record", "{broken}", "--json"],
        ["--parallel", "8"],
        ["--parallel", "1", "--prompts", "{prompts}"],
        ["--parallel", "2", "--replay", "75"],
        ["--record", "{broken}", "--modes", "auto"],
        ["--record", "{missing}/trace"],
    ],
)
def test_wrong_flags_are_told_before_anything_is_loaded(
    flags: list[str], run: Run, script: Script, tmp_path: Path
) -> None:
    prompts, broken = tmp_path / "in.jsonl", tmp_path / "broken.jsonl"
    prompts.write_text('{"prompt": "x"}\n')
    broken.write_text(f'{{"note": "{CANARY}"}}\n')
    trace = tmp_path / "trace.jsonl"
    trace.write_text(as_lines(synthetic(75, answers=2)))
    places = {"prompts": prompts, "broken": broken, "missing": tmp_path / CANARY, "trace": trace}
    result = run("bench", "{models}", *(flag.format(**places) for flag in flags))
    assert result.code == 2 and not script.calls
    assert CANARY not in result.err and result.err.count("\n") <= 3


def test_a_recorded_trace_is_whole_unless_a_length_is_given(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(as_lines(synthetic(75, answers=2, steps=200)))
    whole = given_trace(BenchFlags(replay=str(path)), 128, cut=False)
    assert whole is not None and (whole.longest, whole.places) == (200, 400)
    short = given_trace(BenchFlags(replay=str(path), limit=1), 150, cut=True)
    assert short is not None and (short.longest, short.places) == (150, 150)
    drawn = given_trace(BenchFlags(replay="75", repetitions=3), 40, cut=False)
    assert drawn is not None and (drawn.longest, drawn.places) == (40, 120)


def report() -> Report:
    made = turns(
        target=[taken([1] * 11, rate=20.0, sizes={"target": {1: 10}, "expert": {}})],
        auto=[
            taken(
                [1] * 11,
                rate=15.0,
                sizes={"target": {1: 2, 4: 3}, "expert": {1: 2, 4: 3}},
                decoded={"target": 15, "expert": 15},
                drafts=Drafts(10, 5, 2, 5),
                inside=0.5,
            )
        ],
    )
    cost = {1: 1.0, 4: 2.0}
    difference = Difference(1, 4, (300, 301), (-0.5, -0.6), (-0.6, -0.5))
    result = SpeedResult(
        figures={name: figures(made.of(name)) for name in ("target", "auto")},
        ratios=ratios(made, ["target", "auto"], "target"),
        same={"auto": Sameness("exact-steps", 0, 1, Shift(1e-6, 1e-5, 9), (difference,))},
        costs={role: BatchCost(0.02, cost) for role in ("target", "expert")},
        prompts=1,
        prompt_tokens=100,
        too_long=[3],
    )
    return Report(
        result, Workload([], 11, invented=True), 2, (5_000_000, 1_000_000), {"target": 9}, {}
    )


def test_the_table_says_what_a_ratio_is_made_of(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Screen.standard(), report(), json=False)
    out = capsys.readouterr().out
    assert "pp100 t/s" in out and "tg11 t/s" in out
    assert "0.75" in out and "0.50/0.50" in out and "50%" in out
    # 0.2 forwards of one token and 0.3 of four, which take twice as long: 0.8 of 20 ms.
    assert "target 16.00 + expert 16.00 ms a token, which allows 0.62" in out
    assert "target: one token 20.00 ms; over that, batches of 4 2.00\n" in out
    assert "prompt 1, step 4: token 300 or 301" in out and "not batch arithmetic" in out
    assert "1 prompts do not fit" in out


def test_the_object_has_the_promised_keys(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Screen.standard(), report(), json=True)
    told = json.loads(capsys.readouterr().out)
    mode = told["modes"]["auto"]
    assert mode["generate_tokens_per_s"] == pytest.approx(15.0)
    assert mode["prefill_tokens_per_s"] == pytest.approx(200.0)
    assert mode["forwards_per_token"] == {"target": 0.5, "expert": 0.5}
    assert (mode["acceptance"], mode["gated"]) == (0.5, pytest.approx(2 / 11))
    assert mode["outside_decode_share"] == pytest.approx((10 / 15 - 0.5) / 0.5)
    assert (mode["same_answers"], mode["compared_with"]) == (0, "exact-steps")
    assert mode["differences"][0]["scores_mode"] == [-0.6, -0.5]
    assert told["ratios"] == {"auto/target": pytest.approx(0.75)}
    assert told["threads"] == 2 and told["batches"]["target"]["relative"]["4"] == 2.0
