"""Real kills, real ends of files, real full disks."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from capt_local.batch.journal import Files, JournalFull, OutputJournal
from capt_local.errors import UsageError
from tests.batch.faults import Quick
from tests.batch.runs import beside, fingerprint, ids, in_file, line, run, untimed

OF = fingerprint()
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_at_any_moment_leave_each_record_once(kills: int, tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    output, undisturbed = tmp_path / "killed" / "out", tmp_path / "undisturbed"
    run(undisturbed, ids(200))
    command = [sys.executable, "-m", "tests.batch.killed", str(output), "200", str(kills)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert told.returncode == 0, told.stderr
    done, inside = map(int, told.stdout.split())
    assert done == kills and inside >= kills // 3
    assert untimed(output.read_bytes()) == untimed(undisturbed.read_bytes())
    assert all(name == "run.json" or name.startswith("torn-") for name in beside(output))


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of files take long elsewhere."""
    place = Path("/dev/shm")
    if not os.access(place, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_an_end_at_any_byte_of_the_last_three_records_is_resumed(memory: Path) -> None:
    output = memory / "out"
    run(output, ids(4))
    data, torn = output.read_bytes(), memory / "out.torn-1"
    starts = [0, *(place + 1 for place, byte in enumerate(data) if byte == 10)]
    for size in range(starts[1], len(data) + 1):
        output.write_bytes(data[:size])
        journal = run(output, ids(4))
        assert output.read_bytes() == data
        end = max(start for start in starts if start <= size)
        if end == size:
            assert beside(output) == ["run.json"] and not journal.notices
            continue
        assert beside(output) == ["run.json", "torn-1"]
        assert torn.read_bytes() == data[end:size]
        assert torn.stat().st_mode & 0o777 == 0o600
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(place)]
    try:
        done = subprocess.run(mounted, capture_output=True)
    except OSError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip("a small file system can be mounted by root alone")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def until_full(output: Path, files: Files) -> int:
    """Works until the disk is full; returns how many records it says are safe."""
    with (
        OutputJournal.open(output, OF, files=files) as journal,
        pytest.raises(JournalFull) as error,
    ):
        for id in ids(5000):
            if id not in journal.done:
                journal.append(line(id, OF))
    assert f"{error.value.safe} records are safe" in str(error.value)
    return error.value.safe


def test_a_file_system_of_one_mebibyte(small_disk: Path, tmp_path: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (300 << 10))
    output = small_disk / "out"
    safe = until_full(output, Files())
    assert in_file(output) == ids(safe) and 100 < safe < 2000
    # Nothing has changed: the same command says so again, and loses nothing.
    with pytest.raises(UsageError, match=r"No space left|is full"):
        run(output, ids(5000), files=Files())
    assert in_file(output)[:safe] == ids(safe)
    # Too full to be put in order: it stays as it is.
    backwards = ids(safe)[::-1]
    filler.unlink()
    with OutputJournal.open(output, OF) as journal:
        with pytest.raises(JournalFull):
            journal.put_in_order(backwards)
        assert beside(output) == ["capt-lock", "run.json"]
    assert in_file(output)[:safe] == ids(safe)
    run(output, ids(safe + 50), files=Files())  # room was made
    run(tmp_path / "out", ids(safe + 50))
    assert untimed(output.read_bytes()) == untimed((tmp_path / "out").read_bytes())


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    output = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, before[1]))
    try:
        safe = until_full(output, Quick())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.path.getsize(output) <= 100 << 10
    assert in_file(output) == ids(safe)
    run(output, ids(safe + 1))
    assert in_file(output) == ids(safe + 1)
