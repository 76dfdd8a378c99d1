from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capt_local.batch.journal import JournalBroken, OutputJournal, read_manifest
from capt_local.batch.output import ErrorCode, Failure, LineWriter, RecordRef
from capt_local.errors import UsageError
from capt_local.report.json import Answer, answer_object
from tests.batch.faults import Quick
from tests.batch.runs import NOTE, asked, beside, fingerprint, ids, in_file, line, run

OF = fingerprint()


def test_a_run_writes_each_record_once_and_resumes(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(output, ids(5))
    first = output.read_bytes()
    assert in_file(output) == ids(5)
    journal = run(output, ids(12))
    assert output.read_bytes().startswith(first)
    assert in_file(output) == ids(12)
    assert journal.done["note-9"] == "context_overflow" and journal.done["note-1"] == "ok"
    assert journal.notices == []
    assert beside(output) == ["run.json"]
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_another_setting_is_refused_and_named_without_texts(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(output, ids(2))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = fingerprint(
        parameters={"max_tokens": 32, "sample": {"seed": 0, "temperature": 0.0}},
        prompt={"template": NOTE, "system": "cd" * 32},
        method="target",
    )
    with pytest.raises(UsageError) as error:
        run(output, ids(2), other)
    assert (
        "what differs: method, parameters.max_tokens (16, now 32), prompt.template. Use"
    ) in str(error.value)
    assert NOTE not in str(error.value)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refused(output: Path, match: str, **more: Any) -> None:
    """The output is refused in one clear line, and nothing has changed."""
    before = everything(output.parent) if output.parent.is_dir() else {}
    with pytest.raises(UsageError, match=match) as error:
        run(output, ids(3), **more)
    assert "\n" not in str(error.value) and NOTE not in str(error.value)
    assert output.name not in str(error.value) or output.name == "-"
    if output.parent.is_dir():
        assert everything(output.parent) == before


def test_places_where_no_output_can_be(tmp_path: Path) -> None:
    notes = tmp_path / "notes-of-smith"
    notes.mkdir()
    refused(notes, "is a folder")
    refused(tmp_path / "no-such" / "smith.jsonl", "its folder does not exist")
    refused(Path("-"), "is a file")
    refused(tmp_path / "smith\0.jsonl", "cannot be written: no access")
    refused(tmp_path / ("smith" * 60), "File name too long")
    link = tmp_path / "smith-link"
    link.symlink_to(tmp_path / "elsewhere")
    refused(link, "is a symbolic link")
    os.mkfifo(tmp_path / "smith-pipe")
    refused(tmp_path / "smith-pipe", "is not a regular file")
    refused(Path(os.devnull), "is not a regular file")


def test_the_output_is_not_what_the_run_reads(tmp_path: Path) -> None:
    notes, folder = tmp_path / "smith.jsonl", tmp_path / "smith"
    notes.write_bytes(b"{}\n")
    folder.mkdir()
    refused(notes, "is a file that the run reads", inputs=[folder, notes])
    os.link(notes, tmp_path / "smith-2.jsonl")
    refused(tmp_path / "smith-2.jsonl", "is a file that the run reads", inputs=[notes])
    refused(folder / "out.TXT", "would be read as a note", inputs=[folder])
    run(folder / "out.jsonl", ids(1), inputs=[folder])


@pytest.mark.parametrize("held", [b"{}\n", b"some notes", line("note-1", OF).encode() + b"\n"])
def test_a_file_that_is_none_of_ours_is_left_alone(held: bytes, tmp_path: Path) -> None:
    output = tmp_path / "smith"
    output.write_bytes(held)
    refused(output, "not of capt-local batch, or has lost its manifest")
    journal = run(output, ids(2), force_new=True)
    assert journal.notices == [
        "The output that was there is beside the new one, with the ending .old-1."
    ]
    assert (tmp_path / "smith.old-1").read_bytes() == held
    assert in_file(output) == ids(2)


@pytest.mark.parametrize(
    "held",
    [b"", b"{", b"[]", b'{"a": 1}', b'{"capt_run": 1}', b'{"capt_run": 1, "capt_run": 1}', b"\xff"],
)
def test_a_manifest_that_is_broken(held: bytes, tmp_path: Path) -> None:
    output = tmp_path / "smith"
    run(output, ids(2))
    (tmp_path / "smith.run.json").write_bytes(held)
    refused(output, "its manifest .* is broken")
    run(output, ids(2), force_new=True)
    assert (tmp_path / "smith.old-1.run.json").read_bytes() == held


def test_a_line_in_the_middle_that_is_none(tmp_path: Path) -> None:
    output = tmp_path / "smith"
    run(output, ids(3))
    lines = output.read_bytes().split(b"\n")
    for place, other, match in [
        (1, b"", "line 2: it is not a result"),
        (0, b'{"id": 3}', "line 1: it is not a result"),
        (2, lines[0], "line 3: it is of a record that an earlier line is of"),
        (1, line("note-2", fingerprint(method="unite")).encode(), "line 2: it is of a run with"),
    ]:
        changed = [*lines]
        changed[place] = other
        output.write_bytes(b"\n".join([*changed[:3], lines[1].replace(b"note-2", b"note-4"), b""]))
        refused(output, match)


def test_a_second_run_is_kept_out_while_the_first_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "smith"
    with OutputJournal.open(output, OF, files=Quick()):
        refused(output, "is being written by another run")
        refused(output, "is being written by another run", force_new=True)
    run(output, ids(1))


def test_the_lock_of_a_killed_process_is_no_lock(tmp_path: Path) -> None:
    output = tmp_path / "smith"
    code = (
        "import os, sys; from pathlib import Path; from tests.batch.runs import *;"
        "journal = OutputJournal.open(Path(sys.argv[1]), fingerprint()); print('open', flush=True);"
        "sys.stdin.read()"
    )
    root = Path(__file__).resolve().parents[2]
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, str(output)]
    with subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
        refused(output, "is being written by another run")
        other.kill()
        other.wait()
    assert beside(output) == ["capt-lock", "run.json"]
    run(output, ids(1))
    assert beside(output) == ["run.json"]


def test_what_else_changes_the_output_during_the_run_stops_it(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with OutputJournal.open(output, OF, files=Quick()) as journal:
        journal.append(line("note-1", OF))
        data = output.read_bytes()
        output.write_bytes(data + b"x")
        with pytest.raises(JournalBroken, match=r"changed by something else .* 1 record is safe"):
            journal.append(line("note-2", OF))
    assert output.read_bytes() == data + b"x"  # not ours to cut
    run(output, ids(2))
    with OutputJournal.open(output, OF, files=Quick()) as journal:
        output.rename(tmp_path / "moved")
        with pytest.raises(JournalBroken, match="moved or removed"):
            journal.append(line("note-3", OF))
        with pytest.raises(JournalBroken, match="moved or removed"):
            journal.put_in_order(ids(2)[::-1])
    assert not output.exists() and in_file(tmp_path / "moved") == ids(2)


def test_an_interrupted_line_is_taken_back(tmp_path: Path) -> None:
    class Pressed(Quick):
        def write(self, stream: Any, data: memoryview) -> int:
            if b"note-2" in bytes(data):
                super().write(stream, data[:50])
                raise KeyboardInterrupt
            return super().write(stream, data)

    output = tmp_path / "out"
    with OutputJournal.open(output, OF, files=Pressed()) as journal:
        journal.append(line("note-1", OF))
        with pytest.raises(KeyboardInterrupt):
            journal.append(line("note-2", OF))
        with pytest.raises(JournalBroken, match="it was interrupted"):
            journal.append(line("note-3", OF))
    assert in_file(output) == ids(1) and output.read_bytes().endswith(b"\n")


def test_errors_are_done_again_when_asked(tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(output, ids(20))
    assert run(output, ids(20)).done["note-9"] == "context_overflow"
    journal = OutputJournal.open(output, OF, retry_errors=True, files=Quick())
    with journal:
        assert journal.done.keys() == set(ids(20)) - {"note-9", "note-18"}
        assert in_file(output) == [id for id in ids(20) if id not in ("note-9", "note-18")]
    run(output, ids(20))
    assert sorted(in_file(output)) == sorted(ids(20))
    assert in_file(output)[-2:] == ["note-9", "note-18"]


def records(count: int) -> list[tuple[int, str, str]]:
    return [(asked(id).number, id, asked(id).sha256) for id in ids(count)]


def test_a_record_that_has_changed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    output = tmp_path / "smith"
    run(output, ids(4), input={"sha256": "aa" * 32})
    with output.open("ab") as stream:
        stream.write(b'{"half')
    changed = [(number, id, "0" * 64) for number, id, _ in records(6)]
    now = {"provenance": {"platform": "B"}, "input": {"sha256": "bb" * 32}}
    refused(output, "line 1, and 3 more: changed since its line", records=changed, **now)
    # The manifest still names the input that the lines were made from.
    manifest = read_manifest(output)
    assert manifest is not None and manifest.input["sha256"] == "aa" * 32
    assert "note-" not in str(manifest)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(), st.text(min_size=1), st.floats(), st.text())
def test_whatever_is_said_is_a_line_that_is_read_back(
    tmp_path: Path, said: str, id: str, number: float, message: str
) -> None:
    output = tmp_path / "out"
    one = RecordRef(id.encode("utf-8", "replace").decode(), 1, "ab" * 32)
    other = RecordRef(one.id + "+", 2, "cd" * 32)
    answer = answer_object(Answer((), said.encode("utf-8", "replace"), None, "demo"))
    answer["capt"]["mean_contrast"] = number
    origin = LineWriter(OF)
    with OutputJournal.open(output, OF, force_new=True, files=Quick()) as journal:
        journal.append(origin.answered(one, answer, 0.0))
        journal.append(origin.failed(other, Failure(ErrorCode.UNEXPECTED, message), 0.0))
    with OutputJournal.open(output, OF, files=Quick()) as journal:
        assert journal.notices == []
        assert journal.done == {one.id: "ok", other.id: "unexpected"}
    for path in tmp_path.iterdir():
        path.unlink()


def test_an_answer_that_was_edited_is_refused_at_resume(tmp_path: Path) -> None:
    output = tmp_path / "smith"
    run(output, ids(3))
    data = output.read_bytes()
    output.write_bytes(data.replace(f"{NOTE} note-2".encode(), f"{NOTE} note-7".encode(), 1))
    assert output.read_bytes() != data
    refused(output, "line 2: it has an answer that was edited")


def test_a_pipe_in_the_place_of_the_manifest_is_refused_at_once(tmp_path: Path) -> None:
    output = tmp_path / "smith"
    run(output, ids(2))
    (tmp_path / "smith.run.json").unlink()
    os.mkfifo(tmp_path / "smith.run.json")
    with pytest.raises(UsageError, match=r"manifest .* is not a regular file"):
        run(output, ids(2))
