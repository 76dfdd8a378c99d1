"""`score`: what it reads, and errors that name neither the file nor its text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.fake_runtime import Script

CANARY = "zyzzyva-canary"


def test_each_text_and_the_sum(run: Run, script: Script, tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    file.write_text('{"text": "fever", "id": "a"}\n\n{"text": "cough"}\n')
    result = run("score", "{models}", str(file), "--json", "--per-item")
    assert result.code == 0
    found = [json.loads(line) for line in result.out.splitlines()]
    assert [line.get("id") for line in found] == ["a", "3", None]
    assert found[-1]["bytes"] == 10


@pytest.mark.parametrize(
    ("data", "extra", "said"),
    [
        (None, [], "cannot be read"),
        (b"", [], "holds no text"),
        (b"{}", [], 'line 1: no "text"'),
        (b"\nzyzzyva-canary", [], "line 2: not JSON"),
        (b'{"text": ""}', [], "line 1: the text is empty"),
        (b'{"text": "\\ud800"}', [], "line 1: half of a character"),
        (
            b'{"text": "ab"}\n{"id": "zyzzyva-canary", "text": "\xc3\xa9t\xc3\xa9"}',
            ["--max-bytes", "1"],
            "line 2: the first character is longer than 1 bytes",
        ),
    ],
)
def test_errors_name_the_argument_and_the_line(
    data: bytes | None, extra: list[str], said: str, run: Run, script: Script, tmp_path: Path
) -> None:
    file = tmp_path / f"{CANARY}.jsonl"
    if data is not None:
        file.write_bytes(data)
    for verb, name in (("score", "(FILE)"), ("bench", "--prompts")):
        if verb == "bench" and extra:
            continue
        place = [str(file)] if verb == "score" else ["--prompts", str(file)]
        result = run(verb, "{models}", *place, *extra)
        assert result.code == 2
        assert said in result.err
        assert name in result.err
        assert CANARY not in result.err
    assert not script.calls


def test_an_interrupt_stops_within_a_text(run: Run, script: Script, tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_text("fever")
    script.press_at = 0
    result = run("score", "{models}", str(file))
    assert (result.code, result.out, result.err.splitlines()[-1]) == (
        130,
        "",
        "error: interrupted.",
    )
