"""The flags of `bench`, found wrong before any model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from capt_local.bundles.manifest import Bundle
from capt_local.bundles.store import find
from capt_local.cli.bench import chosen_modes
from capt_local.decoding.options import GenerateOptions, Method, SampleOptions, Speed
from tests.cli.conftest import Run
from tests.cli.fake_runtime import Script

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
        ["-n", "0"],
        ["--parallel", "8"],
        ["--parallel", "1", "--prompts", "{prompts}"],
        ["--parallel", "2", "--prompts", "{prompts}", "--modes", "target"],
    ],
)
def test_wrong_flags_are_told_before_anything_is_loaded(
    flags: list[str], run: Run, script: Script, tmp_path: Path
) -> None:
    prompts, broken = tmp_path / "in.jsonl", tmp_path / "broken.jsonl"
    prompts.write_text('{"prompt": "x"}\n')
    broken.write_text(f'{{"note": "{CANARY}"}}\n')
    places = {"prompts": prompts, "broken": broken, "missing": tmp_path / CANARY}
    result = run("bench", "{models}", *(flag.format(**places) for flag in flags))
    assert result.code == 2 and not script.calls
    assert CANARY not in result.err and result.err.count("\n") <= 3
