"""`--json-schema`: what reaches the decoder, what is told, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capt_local.decoding.step import FinishReason
from capt_local.report.json import answer_from
from tests.cli.conftest import Run
from tests.cli.fake_runtime import FakeGeneration, Script

CANARY = "zyzzyva"


def file(folder: Path, text: str | bytes) -> str:
    path = folder / f"{CANARY}.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.fixture
def formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers say whether they have their form: those that end by themselves."""
    monkeypatch.setattr(
        FakeGeneration, "structured",
        property(lambda self: self.finish is FinishReason.STOP, lambda self, value: None),
        raising=False,
    )  # fmt: skip


def test_a_schema_reaches_the_decoder(run: Run, script: Script, tmp_path: Path) -> None:
    run("generate", "{models}", "-p", "x", "--json-schema", file(tmp_path, '{"type": "null"}'))
    found = script.calls[1]["options"].structure
    assert found.kind == "json-schema" and found.source == '{"type": "null"}'


@pytest.mark.parametrize(
    ("flags", "text", "said"),
    [
        (["--json-schema"], f"The patient {CANARY}", "is not JSON"),
        (["--json-schema"], b"\xff\xfe", "is not valid UTF-8"),
        (["--json-schema"], '{"type": "array", "uniqueItems": true}', '"uniqueItems"'),
        (["--json-schema"], f'{{"anyOf": [{{}}, {{"type": "{CANARY}"}}]}}', "at anyOf[2].type"),
        (["--stop", "x", "--json-schema"], "{}", "stop string"),
    ],
)
def test_a_broken_file_is_one_line_before_any_model(
    run: Run,
    script: Script,
    tmp_path: Path,
    flags: list[str],
    text: str | bytes,
    said: str,
) -> None:
    result = run("generate", "{models}", "-p", "x", *flags, file(tmp_path, text))
    assert (result.code, result.out) == (2, "")
    assert said in result.err and result.err.count("\n") == 1
    assert CANARY not in result.err
    assert script.calls == []


@pytest.mark.usefixtures("formed")
@pytest.mark.parametrize(
    ("finish", "state"),
    [(FinishReason.STOP, "complete"), (FinishReason.LENGTH, "incomplete")],
)
def test_whether_it_is_complete_is_told(
    run: Run, script: Script, tmp_path: Path, finish: FinishReason, state: str
) -> None:
    script.finish = finish
    path = file(tmp_path, f'{{"enum": ["{CANARY}"]}}')
    result = run("generate", "{models}", "-p", "x", "--json-schema", path, "--json")
    told = json.loads(result.out)
    whole = state == "complete"
    assert (result.code, told["capt"]["structured"]) == (0 if whole else 6, state)
    assert ("not valid" in result.err) != whole
    assert any("not valid" in line for line in told["warnings"]) != whole
    # The schema itself may hold words of a note.
    assert told["provenance"]["parameters"]["structure"]["kind"] == "json-schema"
    assert CANARY not in result.out
    assert answer_from(told).structured is whole
