"""The flags of `bench`, found wrong before any model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import CANARY, Run
from tests.cli.fake_runtime import Script


@pytest.mark.parametrize(
    "flags",
    [
        ["--limit", "3"],
        ["--prompts", "{broken}"],
        ["--prompts", "{missing}"],
        ["--modes", "llama,quick"],
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
    prompts.write_text('{"id": "1", "task": "t", "kind": "perplexity", "text": "x"}\n')
    broken.write_text(f'{{"note": "{CANARY}"}}\n')
    places = {"prompts": prompts, "broken": broken, "missing": tmp_path / CANARY}
    result = run("bench", "{models}", *(flag.format(**places) for flag in flags))
    assert result.code == 2 and not script.calls
    assert CANARY not in result.err and result.err.count("\n") <= 3
