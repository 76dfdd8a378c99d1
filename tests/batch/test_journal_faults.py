"""Whatever fails, whenever: what was acknowledged is there, and the next run finishes the work."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from pathlib import Path

import pytest

from capt_local.batch.journal import Files, JournalFull, OutputJournal
from capt_local.errors import UsageError
from tests.batch.faults import BROKEN, FULL, KINDS, Cut, Faulty, PowerCut, Quick
from tests.batch.runs import NOTE, fingerprint, ids, in_file, line, run, untimed

COUNT = 13  # one of them fails
OF = fingerprint()


def whole(folder: Path) -> list[str]:
    """The lines of an undisturbed run."""
    folder.mkdir()
    run(folder / "out", ids(COUNT), in_order=True)
    return untimed((folder / "out").read_bytes())


def work(output: Path, files: Files, said: list[str], *, retry: bool = False) -> None:
    """A run out of order that is then put in order; notes what was acknowledged.

    Records are finished alone, by twos and by threes.
    """
    order = [*ids(COUNT)[::2], *ids(COUNT)[1::2]]
    with OutputJournal.open(output, OF, files=files, retry_errors=retry) as journal:
        left = [id for id in order if id not in journal.done]
        for size in itertools.cycle((1, 2, 3)):
            together, left = left[:size], left[size:]
            if not together:
                break
            journal.append(*(line(id, OF) for id in together))
            said += together
        journal.put_in_order(ids(COUNT))
        journal.conclude({"done": COUNT})


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    """What a killed run may have left: finished records, an error among them, and half a line."""
    folder = tmp_path / "torn"
    folder.mkdir()
    run(folder / "out", ids(10))
    with (folder / "out").open("ab") as stream:
        stream.write(line("note-11", OF).encode()[:90])
    return folder


SLOW = [
    pytest.param(kind, code, for_good, marks=pytest.mark.slow)
    for kind, code in (("fsync", FULL), *((kind, BROKEN) for kind in KINDS))
    for for_good in (False, True)
]


@pytest.mark.parametrize(
    ("kind", "code", "for_good"),
    [("write", FULL, True), ("fsync", BROKEN, False), *SLOW],
)
def test_no_fault_loses_what_was_acknowledged(
    kind: str, code: int, for_good: bool, torn: Path, tmp_path: Path
) -> None:
    expected = whole(tmp_path / "whole")
    struck = 0
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        shutil.copytree(torn, folder)
        output, said = folder / "out", ids(10)
        files = Faulty(kind, at, code, for_good=for_good)
        try:
            work(output, files, said, retry=True)
        except UsageError as error:
            assert NOTE not in str(error) and "note-" not in str(error)
        if not files.struck:
            break
        struck += 1
        kept = in_file(output)
        assert len(kept) == len(set(kept))
        answered = [id for id in said if int(id.rpartition("-")[2]) % 9]
        assert set(answered) <= set(kept)
        work(output, Quick(), said)
        assert untimed(output.read_bytes()) == expected
        shutil.rmtree(folder)
    assert struck >= {"truncate": 1, "unlink": 1}.get(kind, 3)


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power-cut"])
def test_no_moment_of_a_kill_or_a_power_cut_loses_what_was_acknowledged(
    power: bool, torn: Path, tmp_path: Path
) -> None:
    expected = whole(tmp_path / "whole")
    half = line("note-11", OF).encode()[:90]
    struck = 0
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        shutil.copytree(torn, folder)
        output, said = folder / "out", ids(10)
        files = PowerCut(folder, at) if power else Faulty("any", at, None)
        with contextlib.suppress(Cut):
            work(output, files, said)
        if not files.struck:
            break
        struck += 1
        if isinstance(files, PowerCut):
            files.power_on()
        # The half line is where it was, or aside.
        assert any(path.read_bytes().endswith(half) for path in folder.glob("out*"))
        with OutputJournal.open(output, OF, files=Quick()) as journal:
            assert set(said) <= set(journal.done)
        work(output, Quick(), said)
        assert untimed(output.read_bytes()) == expected
        shutil.rmtree(folder)
    assert struck > 30


@pytest.mark.parametrize("power", [False, True], ids=["fault", "power-cut"])
def test_a_new_run_that_fails_loses_nothing_and_leaves_nothing_in_the_way(
    power: bool, tmp_path: Path
) -> None:
    for at in itertools.count(1):
        output = tmp_path / str(at) / "out"
        output.parent.mkdir()
        files = PowerCut(output.parent, at) if power else Faulty("any", at, BROKEN)
        said: list[str] = []
        with contextlib.suppress(UsageError, Cut):
            work(output, files, said)
        if not files.struck:
            break
        if isinstance(files, PowerCut):
            files.power_on()
        assert not said or set(said) <= set(in_file(output))
        work(output, Quick(), said)
        assert len(in_file(output)) == COUNT


def test_an_output_moved_aside_keeps_its_manifest_whatever_fails(tmp_path: Path) -> None:
    other = fingerprint(method="target")
    for at in itertools.count(1):
        output = tmp_path / str(at) / "out"
        output.parent.mkdir()
        run(output, ids(5))
        before = untimed(output.read_bytes())
        files = Faulty("any", at, None)
        with contextlib.suppress(Cut):
            OutputJournal.open(output, other, force_new=True, files=files).close()
        if not files.struck:
            break
        OutputJournal.open(output, other, force_new=True, files=Quick()).close()
        old = next(path for path in output.parent.iterdir() if path.suffix in (".old-1", ".old-2"))
        assert untimed(old.read_bytes()) == before
        run(old, ids(6))  # goes on where it is now
        assert in_file(old) == ids(6)


def test_a_full_disk_stops_the_run_with_what_is_safe(tmp_path: Path) -> None:
    output = tmp_path / "out"
    files = Faulty("write", 5, FULL)  # the manifest, then three records
    with OutputJournal.open(output, OF, files=files) as journal:
        for id in ids(3):
            journal.append(line(id, OF))
        size = output.stat().st_size
        with pytest.raises(JournalFull, match=r"is full\. 3 records are safe") as error:
            journal.append(line("note-4", OF))
        assert error.value.safe == 3
        assert output.stat().st_size == size  # the half line is gone
        with pytest.raises(JournalFull):  # and it stays so, though the disk would take it now
            journal.append(line("note-4", OF))
        assert "note-4" not in journal.done
    assert in_file(output) == ids(3)
