"""Control bytes in text: NUL is refused with its position, all others pass, in every verb alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capt_local import Runtime
from capt_local.cli.app import run
from capt_local.errors import UsageError
from tests.small_trio import SMALL_TRIO

# With byte tokens: SmolLM2 has none for some control characters, and refuses them itself.
MODELS = ("-m", str(SMALL_TRIO), "-t", "1", "-c", "256")
QUICK = (*MODELS, "-n", "1")
OTHERS = "".join(map(chr, (*range(1, 9), 11, 12, *range(14, 32), 127, 0x85)))
NOTE = f"Fever {OTHERS} and a cough."


@pytest.mark.parametrize("text", [f"{NOTE}\0x", NOTE], ids=["nul", "others"])
def test_one_rule_for_all_verbs(
    text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    note, lines = tmp_path / "note.txt", tmp_path / "in.jsonl"
    note.write_bytes(text.encode())
    lines.write_text(json.dumps({"id": "a", "prompt": text}))
    scored = tmp_path / "scored.jsonl"
    scored.write_text(json.dumps({"id": "a", "text": text}))
    output = str(tmp_path / "out.jsonl")
    refused = "\0" in text
    for arguments in (
        ["generate", "-f", str(note), *QUICK],
        ["generate", "-f", str(note), "--raw", *QUICK],
        ["batch", str(lines), "-o", output, *QUICK],
        ["score", str(scored), *MODELS],
        ["score", str(note), *MODELS],
    ):
        code = run(arguments)
        err = capfd.readouterr().err
        assert code == (2 if refused else 0), (arguments, err)
        if refused:
            place = len(NOTE.encode())
            assert f"holds a NUL byte (0x00) at byte {place} (counted from 0)" in err
            assert "Fever" not in err


@pytest.mark.parametrize("raw", [False, True])
def test_the_python_interface_too(raw: bool) -> None:
    with Runtime.open(SMALL_TRIO) as runtime:
        with pytest.raises(UsageError, match="NUL byte"):
            list(runtime.generate("one\0two", raw=raw))
        with pytest.raises(UsageError, match="NUL byte"):
            runtime.score(b"one\0two")
        with pytest.raises(UsageError, match="NUL byte"):
            runtime.score_answer("one", b"two\0", raw=raw)
