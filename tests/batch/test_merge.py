from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from capt_local.batch import lock
from capt_local.batch.journal import Journal
from capt_local.batch.manifest import RunFacts, read_manifest
from capt_local.batch.merge import merge
from capt_local.batch.shard import Shard
from capt_local.errors import UsageError
from tests.batch.faults import BROKEN, FULL, Faulty, Quick
from tests.batch.runs import NOTE, asked, beside, fingerprint, ids, in_file, run

COUNT = 40
INPUT = {"records": COUNT, "sha256": "ef" * 32}
RECORDS = [(asked(id).number, id, asked(id).sha256) for id in ids(COUNT)]


def shards(folder: Path, count: int = 3, **changed: Any) -> list[Path]:
    """The outputs of all shards of a run, each finished out of order."""
    made = []
    for index in range(1, count + 1):
        shard = Shard(index, count)
        wanted = [id for id in ids(COUNT) if shard.holds(id)]
        made.append(folder / f"smith-{index}")
        facts = RunFacts({"host": index}, wanted=len(wanted), input=INPUT)
        run(made[-1], wanted[::-1], fingerprint(shard, **changed), facts=facts)
    return made


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refused(outputs: list[Path], output: Path, match: str, **more: Any) -> None:
    before = everything(output.parent)
    with pytest.raises(UsageError, match=match) as error:
        merge(outputs, output, files=Quick(), **more)
    assert "smith-" not in str(error.value) and NOTE not in str(error.value)
    assert "note-" not in str(error.value)
    assert before == everything(output.parent)


def test_shards_become_the_output_of_one_run(tmp_path: Path) -> None:
    run(tmp_path / "one", ids(COUNT))
    parts = shards(tmp_path)
    before = [part.read_bytes() for part in parts]
    for name, records in (("counted", None), ("looked-for", RECORDS)):
        output = tmp_path / name
        merged = merge(parts[::-1], output, records=records, files=Quick())
        assert (merged.records, merged.failed, merged.shards) == (COUNT, 4, 3)
        assert output.read_bytes() == (tmp_path / "one").read_bytes()
        assert stat.S_IMODE(output.stat().st_mode) == 0o600
        manifest = read_manifest(output, "it")
        assert manifest is not None and manifest.shard is None
        told = [(entry["shard"], entry["host"]) for entry in manifest.provenance]
        assert told == [("1/3", 1), ("2/3", 2), ("3/3", 3)]
        run(output, ids(COUNT + 2))  # and is gone on with as one
        assert in_file(output) == ids(COUNT + 2)
    assert before == [part.read_bytes() for part in parts]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(("lock", "new"))]


def test_what_does_not_belong_together(tmp_path: Path) -> None:
    output = tmp_path / "merged"
    parts = shards(tmp_path)
    refused([*parts[:2], parts[0]], output, "Output 3 of 3 and Output 1 of 3 are the same file")
    again = tmp_path / "again"
    again.mkdir()
    same = shards(again)[0]
    refused([*parts, same], output, "Output 4 of 4 and Output 1 of 4 are the same shard")
    refused(parts[:2], output, "Not all shards are given; missing: 3/3")
    refused([*parts, tmp_path / "smith"], output, "Output 4 of 4 cannot be read: there is no such")
    other = tmp_path / "other"
    other.mkdir()
    unite = shards(other, method="unite")
    refused([*parts[:2], unite[2]], output, "Output 3 of 3 .* other settings .* differs: method")
    halves = tmp_path / "halves"
    halves.mkdir()
    refused([parts[0], shards(halves, 2)[1]], output, "is shard 2/2, but the first is 1/3")
    whole = tmp_path / "smith-whole"
    run(whole, ids(COUNT))
    refused([whole], output, "Output 1 of 1 is not of a shard")
    (tmp_path / "smith-4").write_bytes(parts[0].read_bytes())
    refused([tmp_path / "smith-4"], output, "has lost its manifest")


def test_the_shards_of_another_input(tmp_path: Path) -> None:
    parts = shards(tmp_path)
    facts = RunFacts(wanted=0, input={**INPUT, "sha256": "00" * 32})
    run(parts[1], [], fingerprint(Shard(2, 3)), facts=facts)
    refused(parts, tmp_path / "merged", "Output 2 of 3 was made from another input")


def test_a_record_of_another_shard(tmp_path: Path) -> None:
    parts = shards(tmp_path)
    parts[1].write_bytes(parts[1].read_bytes() + parts[0].read_bytes().splitlines(True)[0])
    refused(parts, tmp_path / "merged", "Output 2 of 3 holds records that are not of shard 2/3")


def test_shards_that_are_not_finished(tmp_path: Path) -> None:
    parts = shards(tmp_path)
    output = tmp_path / "merged"
    data = parts[0].read_bytes()
    lines = data.splitlines(True)
    parts[0].write_bytes(b"".join(lines[:-1]))
    number = json.loads(lines[-1])["provenance"]["record"]["line"]
    counts = f"holds {len(lines) - 1} of the {len(lines)} records of shard 1/3"
    refused(parts, output, f"Output 1 of 3 {counts}")
    refused(parts, output, f"1 of 40 records .* line {number} of the input", records=RECORDS)
    parts[0].write_bytes(data[:-9])
    refused(parts, output, "Output 1 of 3 ends in half a line: run shard 1/3 again")
    parts[0].write_bytes(data)
    with Journal.open(parts[2], fingerprint(Shard(3, 3)), facts=_facts(3), files=Quick()):
        refused(parts, output, "Output 3 of 3 is being written by another run")
    merge(parts, output, files=Quick())


def _facts(index: int) -> RunFacts:
    wanted = sum(Shard(index, 3).holds(id) for id in ids(COUNT))
    return RunFacts({"host": index}, wanted=wanted, input=INPUT)


def test_the_input_is_not_the_one(tmp_path: Path) -> None:
    parts, output = shards(tmp_path), tmp_path / "merged"
    refused(parts, output, "1 lines are of records not in the input", records=RECORDS[1:])
    changed = [*RECORDS[:4], (5, "note-5", "00" * 32), *RECORDS[5:]]
    refused(parts, output, "The input, line 5: changed since", records=changed)


def test_numbers_of_lines_that_may_have_moved_give_no_order(tmp_path: Path) -> None:
    parts, output = shards(tmp_path), tmp_path / "merged"
    was = RunFacts({"host": 2}, wanted=0, input={**INPUT, "sha256": "00" * 32})
    wanted = [id for id in ids(COUNT) if Shard(2, 3).holds(id)]
    run(parts[1], wanted[:3], fingerprint(Shard(2, 3)), facts=was, force_new=True)
    for path in tmp_path.glob("smith-2.old-1*"):
        path.unlink()
    run(parts[1], wanted, fingerprint(Shard(2, 3)), facts=_facts(2))
    refused(parts, output, "Output 2 of 3 was made while its input changed.* --input")
    merge(parts, output, records=RECORDS, files=Quick())
    assert in_file(output) == ids(COUNT)


def test_two_records_of_one_line_give_no_order(tmp_path: Path) -> None:
    parts, output = shards(tmp_path), tmp_path / "merged"
    first = json.loads(parts[0].read_bytes().splitlines()[0])["provenance"]["record"]["line"]
    second = json.loads(parts[1].read_bytes().splitlines()[0])["provenance"]["record"]["line"]
    data = parts[1].read_bytes()
    assert data.count(b'"line": %d,' % second) == 1
    parts[1].write_bytes(data.replace(b'"line": %d,' % second, b'"line": %d,' % first))
    refused(parts, output, "of the same line of the input.* --input")
    merge(parts, output, records=RECORDS, files=Quick())
    assert in_file(output) == ids(COUNT)


def test_an_earlier_merge_is_moved_aside_on_request(tmp_path: Path) -> None:
    parts, output = shards(tmp_path), tmp_path / "merged"
    merge(parts, output, files=Quick())
    before = output.read_bytes()
    refused(parts, output, "is there already.* --force-new")
    merged = merge(parts, output, files=Quick(), force_new=True)
    assert output.read_bytes() == before == (tmp_path / "merged.old-1").read_bytes()
    assert "with the ending .old-1." in merged.notices[0]


def test_shards_of_different_devices_are_told(tmp_path: Path) -> None:
    parts, output = shards(tmp_path), tmp_path / "merged"
    assert merge(parts, output, files=Quick()).notices == ()
    for number, device in ((1, "A"), (2, "B"), (3, "A")):
        facts = RunFacts(wanted=_facts(number).wanted, input=INPUT)
        of = fingerprint(Shard(number, 3))
        with Journal.open(parts[number - 1], of, facts=facts, files=Quick()) as journal:
            journal.tell_provenance({"devices": [device], "loaded": {}})
    (said,) = merge(parts, tmp_path / "other", files=Quick()).notices
    assert "different devices" in said


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = shards(tmp_path)
    monkeypatch.setattr(lock, "_lock", no_locks)
    (said,) = merge(parts, tmp_path / "merged", files=Quick()).notices
    assert "has no locks" in said


def no_locks(_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_places_where_it_cannot_be(tmp_path: Path) -> None:
    parts = shards(tmp_path)
    refused(parts, parts[0], "is a file that the run reads")
    (tmp_path / "folder").mkdir()
    (tmp_path / "there").write_bytes(b"x")
    refused(parts, tmp_path / "there", "is there already")
    refused(parts, tmp_path / "folder", "is a folder")


@pytest.mark.parametrize("code", [FULL, BROKEN])
@pytest.mark.parametrize("kind", ["write", "fsync", "replace", "sync_folder", "open"])
def test_no_fault_leaves_half_an_output(kind: str, code: int, tmp_path: Path) -> None:
    parts = shards(tmp_path)
    before = [part.read_bytes() for part in parts]
    run(tmp_path / "one", ids(COUNT))
    output = tmp_path / "merged"
    for at in range(1, 200):
        files = Faulty(kind, at, code)
        try:
            merge(parts, output, files=files)
        except UsageError:
            assert not output.exists() or output.read_bytes() == (tmp_path / "one").read_bytes()
            assert not [name for name in beside(output) if "capt" in name]
        output.unlink(missing_ok=True)
        if not files.struck:
            break
    assert at > 1 and before == [part.read_bytes() for part in parts]
