"""Documents on the command line: their text reaches the models, bad ones end with 2."""

from __future__ import annotations

import json
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


def test_facts_without_a_source_are_told(run: Run, script: Script, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("Takes aspirin 81 mg daily for the heart.")
    script.pieces = [(b"Takes aspirin 81 mg", None), (b" and warfarin 5 mg daily.", None)]
    told = run("generate", "{models}", "-p", "Drugs?", "-f", str(note), "--json")
    sources = json.loads(told.out)["capt"]["sources"]
    assert told.code == 0 and sources["of"] == "document"
    assert "2 of 4 facts not found in the document: warfarin; 5 mg" in told.err
    places = {fact["text"]: (fact["match"], fact["source"]) for fact in sources["facts"]}
    assert places["aspirin"] == ("exact", [6, 13]) and places["warfarin"] == ("unsupported", None)
    # Without a note, figures alone are looked for in the prompt.
    told = run("generate", "{models}", "-p", "Drugs?")
    assert "2 of 2 facts not found in the prompt: 81 mg; 5 mg." in told.err


def test_no_answer_without_sources(run: Run, script: Script, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("Takes aspirin 81 mg daily for the heart.")
    script.pieces = [(b"Takes warfarin.", None)]
    refused = run("generate", "{models}", "-f", str(note), "--require-sources")
    assert (refused.code, refused.out) == (6, "")
    assert "nothing is answered (--require-sources): 1 of 1 facts" in refused.err
    written = run("generate", "{models}", "-f", str(note), "--require-sources", "--json")
    choice = json.loads(written.out)["choices"][0]
    assert choice["finish_reason"] == "abstained" and choice["message"]["content"] == ""
    script.pieces = [(b"Takes aspirin daily.", None)]
    answered = run("generate", "{models}", "-f", str(note), "--require-sources")
    assert (answered.code, answered.out) == (0, "Takes aspirin daily.\n")
    assert run("generate", "{models}", "-p", "x", "--require-sources").code == 2
