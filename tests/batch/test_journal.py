"""The output as a journal: what it refuses, how it resumes, and what a failing disk does to it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capt_local.batch.journal import OutputJournal, read_manifest
from capt_local.batch.output import Failure, LineWriter
from capt_local.errors import UsageError
from capt_local.line_file import DiskFailed
from capt_local.report.json import Answer, answer_object
from tests.batch.faults import BROKEN, FULL, KINDS, Cut, Faulty, PowerCut, Quick
from tests.batch.runs import NOTE, beside, fingerprint, ids, in_file, line, ref, run, untimed

OF = fingerprint()
COUNT = 13  # one of them fails
ROOT = Path(__file__).resolve().parents[2]


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refused(output: Path, match: str, of: dict[str, Any] | None = None, **more: Any) -> None:
    """The output is refused in one clear line, and nothing has changed."""
    before = everything(output.parent) if output.parent.is_dir() else {}
    with pytest.raises(UsageError, match=match) as error:
        run(output, ids(3), of, **more)
    assert "\n" not in str(error.value) and NOTE not in str(error.value)
    assert output.name not in str(error.value) or output.name == "-"
    if output.parent.is_dir():
        assert everything(output.parent) == before


def test_a_run_writes_each_record_once_and_resumes(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(output, ids(5))
    first = output.read_bytes()
    assert in_file(output) == ids(5)
    journal = run(output, ids(12))
    assert output.read_bytes().startswith(first)
    assert in_file(output) == ids(12)
    assert journal.done["note-9"] == "context_overflow" and journal.done["note-1"] == "ok"
    assert journal.notices == [] and beside(output) == ["run.json"]
    assert len(json.loads((tmp_path / "out.jsonl.run.json").read_bytes())["starts"]) == 2
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_another_setting_is_refused_and_named_without_texts(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(output, ids(2))
    other = fingerprint(
        parameters={"max_tokens": 32, "sample": {"seed": 0, "temperature": 0.0}},
        prompt={"template": NOTE, "system": "cd" * 32},
        method="target",
    )
    names = r"what differs: method, parameters.max_tokens \(16, now 32\), prompt.template\. Use"
    refused(output, names, other)


def test_places_where_no_output_can_be(tmp_path: Path) -> None:
    folder, link, pipe = tmp_path / "smith", tmp_path / "smith-link", tmp_path / "smith-pipe"
    folder.mkdir()
    link.symlink_to(tmp_path / "elsewhere")
    os.mkfifo(pipe)
    refused(folder, "Is a directory")
    refused(tmp_path / "no-such" / "smith.jsonl", "No such file or directory")
    refused(tmp_path / ("smith" * 60), "File name too long")
    refused(link, "symbolic link")
    refused(pipe, "is not a regular file")


@pytest.mark.parametrize("held", [b"{}\n", b"some notes", line("note-1", OF).encode() + b"\n"])
def test_a_file_that_is_none_of_ours_is_left_alone(held: bytes, tmp_path: Path) -> None:
    output = tmp_path / "smith"
    output.write_bytes(held)
    refused(output, "not of capt-local batch, or has lost its manifest")
    journal = run(output, ids(2), force_new=True)
    assert "with the ending .old-1" in journal.notices[0]
    assert (tmp_path / "smith.old-1").read_bytes() == held
    assert in_file(output) == ids(2)


@pytest.mark.parametrize(
    "held", [b"", b"[]", b'{"a": 1}', b'{"capt_run": 2}', b'{"capt_run": 2, "capt_run": 2}', None]
)
def test_a_manifest_that_is_broken(held: bytes | None, tmp_path: Path) -> None:
    output, manifest = tmp_path / "smith", tmp_path / "smith.run.json"
    run(output, ids(2))
    if held is None:
        manifest.unlink()
        os.mkfifo(manifest)  # refused at once: nobody writes into it
    else:
        manifest.write_bytes(held)
    refused(output, "its manifest .* (is broken|it is not a file)")


def sealed(line: dict[str, object]) -> bytes:
    """A line with the digest that belongs to it, which anybody can compute."""
    del line["sha256"]
    data = json.dumps(line).encode()[:-1]
    return data + b', "sha256": "' + hashlib.sha256(data).hexdigest().encode() + b'"}'


def test_a_line_that_is_not_as_it_was_written(tmp_path: Path) -> None:
    output = tmp_path / "smith"
    run(output, ids(3))
    lines = output.read_bytes().split(b"\n")
    other = line("note-2", fingerprint(method="unite")).encode()
    cases = [
        (1, b"", "line 2: it is not a result"),
        (0, b'{"id": 3}', "line 1: it is not a result"),
        (2, lines[0], "line 3: it is of a record that an earlier line is of"),
        (1, other, "line 2: it is of a run with"),
        (1, lines[1].replace(b'"custom_id": "note-2"', b'"custom_id": "note-7"'), "line 2: it was"),
        (1, lines[1].replace(NOTE.encode(), b"another", 1), "line 2: it was edited"),
        (1, lines[1].replace(b'"AIRPT"', b'"HUMAN"'), "line 2: it was edited"),
        (1, lines[1].replace(b'"prompt_tokens": 0', b'"prompt_tokens": 1'), "line 2: it was"),
        (2, lines[2].replace(b'"seed": ', b'"seed": 1'), "line 3: it was edited"),
        *[(1, sealed(json.loads(lines[1]) | change), "line 2: it is not a result")
          for change in ({"provenance": 5}, {"provenance": {"run": 1, "record": None}},
                         {"error": "a text"}, {"error": {"a": 1}})],
    ]  # fmt: skip
    for place, changed, match in cases:
        assert changed != lines[place]
        output.write_bytes(b"\n".join([*lines[:place], changed, *lines[place + 1 :]]))
        refused(output, match)


def test_a_second_run_is_kept_out_while_the_first_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "smith"
    code = (
        "import sys; from pathlib import Path; from tests.batch.runs import *;"
        "journal = OutputJournal.open(Path(sys.argv[1]), fingerprint());"
        "journal.append(line('note-1', fingerprint())); print('open', flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, str(output)]
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
        refused(output, "is being written by another run")
        refused(output, "is being written by another run", force_new=True)
        other.kill()
        other.wait()
    run(output, ids(2))  # the lock of a killed process is no lock
    assert in_file(output) == ids(2) and beside(output) == ["run.json"]


def test_what_else_changes_the_output_during_the_run_stops_it(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Quick().used(), OutputJournal.open(output, OF) as journal:
        journal.append(line("note-1", OF))
        data = output.read_bytes()
        output.write_bytes(data + b"x")
        with pytest.raises(DiskFailed, match=r"changed by something else .* 1 record is safe"):
            journal.append(line("note-2", OF))
    assert output.read_bytes() == data + b"x"  # not ours to cut
    with Quick().used(), OutputJournal.open(output, OF) as journal:
        output.rename(tmp_path / "moved")
        with pytest.raises(DiskFailed, match="moved or removed"):
            journal.append(line("note-3", OF))
    assert not output.exists() and in_file(tmp_path / "moved") == ids(1)


def test_errors_are_done_again_when_asked(tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(output, ids(20))
    assert run(output, ids(20)).done["note-9"] == "context_overflow"
    with Quick().used(), OutputJournal.open(output, OF, retry_errors=True) as journal:
        assert journal.done.keys() == set(ids(20)) - {"note-9", "note-18"}
        assert in_file(output) == list(journal.done)
    run(output, ids(20))
    assert in_file(output)[-2:] == ["note-9", "note-18"] and len(in_file(output)) == 20


def test_a_record_that_has_changed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    output = tmp_path / "smith"
    run(output, ids(4), input={"sha256": "aa" * 32})
    with output.open("ab") as stream:
        stream.write(b'{"half')
    changed = [(ref(id).number, id, "0" * 64) for id in ids(6)]
    now = {"provenance": {"platform": "B"}, "input": {"sha256": "bb" * 32}}
    refused(output, "line 1, and 3 more: changed since its line", records=changed, **now)
    # The manifest still names the input that the lines were made from.
    manifest = read_manifest(output)
    assert manifest is not None and manifest.input["sha256"] == "aa" * 32
    assert "note-" not in str(manifest)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(), st.text(min_size=1), st.floats(), st.text())
def test_whatever_is_answered_is_a_line_that_is_read_back(
    tmp_path: Path, text: str, id: str, number: float, message: str
) -> None:
    output = tmp_path / "out"
    one = dataclasses.replace(ref("note-1"), id=id.encode("utf-8", "replace").decode())
    other = dataclasses.replace(ref("note-2"), id=one.id + "+")
    answer = answer_object(Answer((), text.encode("utf-8", "replace"), None, "demo"))
    answer["capt"]["mean_contrast"] = number
    writer = LineWriter(OF)
    with Quick().used():
        with OutputJournal.open(output, OF) as journal:
            journal.append(writer.answered(one, answer, 0.0))
            journal.append(writer.failed(other, Failure("unexpected", message), 0.0))
        with OutputJournal.open(output, OF) as journal:
            assert journal.notices == []
            assert journal.done == {one.id: "ok", other.id: "unexpected"}
    for path in tmp_path.iterdir():
        path.unlink()


# A disk that fails.


def work(output: Path, safe: list[str], *, retry: bool = False) -> None:
    """A run; notes what was acknowledged. Records are finished alone, by twos and by threes."""
    with OutputJournal.open(output, OF, retry_errors=retry) as journal:
        left = [id for id in ids(COUNT) if id not in journal.done]
        for size in itertools.cycle((1, 2, 3)):
            together, left = left[:size], left[size:]
            if not together:
                break
            journal.append(*(line(id, OF) for id in together))
            safe += together
        journal.conclude({"done": COUNT})


def is_whole(output: Path) -> bool:
    """Whether all records are there once, as an undisturbed run writes them."""
    expected = [line(id, OF).encode() for id in ids(COUNT)]
    return sorted(output.read_bytes().splitlines()) == sorted(expected)


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    """What a killed run may have left: finished records, an error among them, and half a line."""
    folder = tmp_path / "torn"
    folder.mkdir()
    run(folder / "out", ids(10))
    with (folder / "out").open("ab") as stream:
        stream.write(line("note-11", OF).encode()[:90])
    return folder


def moments(torn: Path, make: Callable[[Path, int], Faulty]) -> Iterator[tuple[Path, Faulty]]:
    """A copy of the folder for each moment at which a fault can come."""
    for at in itertools.count(1):
        folder = torn.with_name(str(at))
        shutil.copytree(torn, folder)
        files = make(folder, at)
        yield folder / "out", files
        if not files.struck:
            assert at > 1
            return
        shutil.rmtree(folder)


SLOW = [
    pytest.param(kind, code, for_good, marks=pytest.mark.slow)
    for kind, code in (("fsync", FULL), *((kind, BROKEN) for kind in KINDS))
    for for_good in (False, True)
]


@pytest.mark.parametrize(
    ("kind", "code", "for_good"), [("pwrite", FULL, True), ("fsync", BROKEN, False), *SLOW]
)
def test_no_fault_loses_what_was_acknowledged(
    kind: str, code: int, for_good: bool, torn: Path
) -> None:
    for output, files in moments(torn, lambda _, at: Faulty(kind, at, code, for_good=for_good)):
        safe = ids(10)
        try:
            with files.used():
                work(output, safe, retry=True)
        except UsageError as error:
            assert NOTE not in str(error) and "note-" not in str(error)
        there = in_file(output) if output.read_bytes().endswith(b"\n") else []
        assert len(there) == len(set(there))
        with Quick().used():
            work(output, safe)
        assert set(safe) <= set(in_file(output)) and is_whole(output)


@pytest.mark.parametrize("begun", [False, True], ids=["new", "torn"])
@pytest.mark.parametrize("power", [False, True], ids=["kill", "power-cut"])
def test_no_moment_of_a_kill_or_a_power_cut_loses_what_was_acknowledged(
    power: bool, begun: bool, torn: Path
) -> None:
    half = line("note-11", OF).encode()[:90]
    if not begun:
        for path in torn.iterdir():
            path.unlink()

    def make(folder: Path, at: int) -> Faulty:
        return PowerCut(folder, at) if power else Faulty("any", at, None)

    for output, files in moments(torn, make):
        safe = ids(10) if begun else []
        with contextlib.suppress(Cut), files.used():
            work(output, safe)
        if isinstance(files, PowerCut) and files.struck:
            files.power_on()
        # The half line is where it was, or aside.
        halves = [path for path in output.parent.glob("out*") if path.read_bytes().endswith(half)]
        assert bool(halves) == begun
        with Quick().used():
            with OutputJournal.open(output, OF) as journal:
                assert set(safe) <= set(journal.done)
            work(output, safe)
        assert is_whole(output)


def test_an_output_moved_aside_keeps_its_manifest_whatever_fails(tmp_path: Path) -> None:
    other, whole = fingerprint(method="target"), tmp_path / "whole"
    whole.mkdir()
    run(whole / "out", ids(5))
    before = untimed((whole / "out").read_bytes())
    for output, files in moments(whole, lambda _, at: Faulty("any", at, None)):
        with contextlib.suppress(Cut), files.used():
            OutputJournal.open(output, other, force_new=True).close()
        run(output, [], other, force_new=True)
        olds = [path for path in output.parent.iterdir() if path.suffix in (".old-1", ".old-2")]
        old = next(path for path in olds if path.read_bytes())
        assert untimed(old.read_bytes()) == before
        run(old, ids(6))  # goes on where it is now
        assert in_file(old) == ids(6)


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_at_any_moment_leave_each_record_once(kills: int, tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    output, undisturbed = tmp_path / "killed" / "out", tmp_path / "undisturbed"
    run(undisturbed, ids(200))
    command = [sys.executable, "-m", "tests.batch.killed", str(output), "200", str(kills)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    killed, inside = map(int, done.stdout.split())
    assert killed == kills and inside >= kills // 3
    assert untimed(output.read_bytes()) == untimed(undisturbed.read_bytes())
    assert all(name == "run.json" or name.startswith("torn-") for name in beside(output))


@pytest.mark.slow
def test_an_end_at_any_byte_of_the_last_records_is_resumed() -> None:
    place = Path("/dev/shm")  # thousands of files take long elsewhere
    with tempfile.TemporaryDirectory(dir=place if os.access(place, os.W_OK) else None) as folder:
        output, torn = Path(folder) / "out", Path(folder) / "out.torn-1"
        run(output, ids(4))
        data = output.read_bytes()
        starts = [0, *(place + 1 for place, byte in enumerate(data) if byte == 10)]
        for size in range(starts[1], len(data) + 1):
            output.write_bytes(data[:size])
            journal = run(output, ids(4))
            assert output.read_bytes() == data
            end = max(start for start in starts if start <= size)
            assert beside(output) == ["run.json", *(["torn-1"] if end < size else [])]
            if end < size:
                assert torn.read_bytes() == data[end:size]
                assert f"its {size - end} bytes" in journal.notices[0]
                torn.unlink()


@pytest.mark.parametrize("end", [b"\0" * 4096, b"\n", b"{}\n", b'{"id": "x"', b"\xff\n\0\0\0"])
def test_what_a_power_cut_may_leave_behind_the_lines_is_moved_aside(
    end: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run(output, ids(4))
    data = output.read_bytes()
    output.write_bytes(data + end)
    run(output, ids(6))
    assert output.read_bytes().startswith(data) and in_file(output) == ids(6)
    assert (tmp_path / "out.torn-1").read_bytes() == end


def until_full(output: Path) -> int:
    """Works until the disk is full, and stays so; returns how many records are safe."""
    with OutputJournal.open(output, OF) as journal:
        with pytest.raises(DiskFailed) as error:
            for id in ids(5000):
                if id not in journal.done:
                    journal.append(line(id, OF))
        assert f"{len(journal.done)} records are safe" in str(error.value)
        with pytest.raises(DiskFailed, match="records are safe"):
            journal.append(line("note-5001", OF))
        return len(journal.done)


def test_a_file_system_of_one_mebibyte(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root alone")
    try:
        filler, output = place / "filler", place / "out"
        filler.write_bytes(b"x" * (300 << 10))
        safe = until_full(output)
        assert in_file(output) == ids(safe) and 100 < safe < 2000
        # Nothing has changed: the same command fails again, and loses nothing.
        with pytest.raises(UsageError, match=r"No space left|is full"):
            run(output, ids(5000))
        assert in_file(output)[:safe] == ids(safe)
        filler.unlink()
        run(output, ids(safe + 50))
        run(tmp_path / "out", ids(safe + 50))
        assert untimed(output.read_bytes()) == untimed((tmp_path / "out").read_bytes())
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    output = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, before[1]))
    try:
        with Quick().used():
            safe = until_full(output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run(output, ids(safe + 1))
    assert in_file(output) == ids(safe + 1)
