"""Documents on the command line: their text reaches the models, bad ones end with 2."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Run, Stdin
from tests.cli.fake_runtime import Script

DATA = Path(__file__).parents[1] / "documents" / "data"


def test_the_text_of_a_document_is_the_prompt(run: Run, script: Script, tmp_path: Path) -> None:
    result = run("generate", "{models}", "-p", "Which drugs?", "-f", str(DATA / "visit.pdf"))
    asked = script.calls[1]["asked"][0].content
    assert result.code == 0 and asked.startswith("Which drugs?\n\nInvented Hospital\nVisit of")
    data = (DATA / "visit.docx").read_bytes()
    assert run("generate", "{models}", stdin=Stdin(data)).code == 0
    assert "metformin | 500 mg" in script.calls[-2]["asked"][0].content
    note = tmp_path / "note.txt"
    note.write_bytes("Fieber 39 °C".encode("windows-1252"))
    refused = run("generate", "{models}", "-f", str(note))
    assert refused.code == 2 and "byte 10 (counted from 0) is 0xb0" in refused.err
    assert run("generate", "{models}", "-f", str(note), "--encoding", "windows-1252").code == 0
    assert script.calls[-2]["asked"][0].content == "Fieber 39 °C"


def test_a_document_that_cannot_be_read_ends_with_2(run: Run, script: Script) -> None:
    result = run("generate", "{models}", "-f", str(DATA / "locked.pdf"))
    assert (result.code, result.out) == (2, "") and script.calls == []
    assert "The prompt file (-f) needs a password" in result.err and "locked" not in result.err
