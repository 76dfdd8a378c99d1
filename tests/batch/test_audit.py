from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from capt_local.batch import lock
from capt_local.batch.audit import AuditLog, Entry, Event
from capt_local.batch.audit_chain import verify, with_head
from capt_local.batch.audit_key import output_hmac, read_key
from capt_local.errors import UsageError
from tests.batch.faults import BROKEN, FULL, Cut, Faulty
from tests.batch.test_merge import no_locks

ROOT = Path(__file__).resolve().parents[2]


def entry(number: int, event: Event = Event.END) -> Entry:
    return Entry(event, f"run-{number}", "ab" * 32, "demo", None, counts={"ok": number})


def log(path: Path, count: int = 4) -> list[str]:
    """A log of some entries; returns the head after each."""
    made = AuditLog(path)
    return [made.append(entry(number)) for number in range(1, count + 1)]


def test_entries_are_chained_and_hold_counts_alone(tmp_path: Path) -> None:
    path = tmp_path / "runs.audit"
    heads = log(path)
    found = verify(path)
    assert found.bad is None and found.head == heads[-1] and len(found.entries) == 4
    assert [each["hash"] for each in found.entries] == heads
    assert [each["previous"] for each in found.entries] == ["0" * 64, *heads[:-1]]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = json.loads(path.read_bytes().split(b"\n")[0])
    assert list(first) == [
        "n", "time", "event", "run", "fingerprint", "bundle", "bundle_sha256", "shard", "counts",
        "exit_status", "output_hmac", "previous", "hash",
    ]  # fmt: skip
    without = {name: value for name, value in first.items() if name != "hash"}
    # As docs/batch.md tells others to compute it.
    assert first["hash"] == hashlib.sha256(json.dumps(without).encode() + b"\n").hexdigest()


def test_a_change_of_any_byte_names_the_entry(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log(path, 3)
    data = path.read_bytes()
    for place in range(len(data) - 1):
        for changed in (data[place] ^ 1, 32):
            if changed == data[place]:
                continue
            path.write_bytes(data[:place] + bytes([changed]) + data[place + 1 :])
            found = verify(path)
            assert found.bad == data[:place].count(b"\n") + 1, (place, found)
            assert len(found.entries) == found.bad - 1


def test_entries_that_are_moved_missing_doubled_or_added(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log(path, 4)
    lines = path.read_bytes().splitlines(True)
    other = tmp_path / "other"
    log(other, 5)
    foreign = other.read_bytes().splitlines(True)
    for changed, bad in [
        ([lines[1], lines[0], *lines[2:]], 1),
        ([lines[0], *lines[2:]], 2),
        (lines[1:], 1),
        ([*lines[:3], lines[2], lines[3]], 4),
        ([*lines, foreign[4].replace(b'"run-5"', b'"run-6"')], 5),
        ([*lines, b"\n"], 5),
        ([*lines, b"{}\n"], 5),
        ([*lines, b"\xff\n"], 5),
        ([*lines, b"some text"], 5),
    ]:
        path.write_bytes(b"".join(changed))
        assert verify(path).bad == bad
        before = path.read_bytes()
        with pytest.raises(UsageError, match=f"entry {bad} is bad"):
            AuditLog(path)
        assert path.read_bytes() == before


def test_a_head_that_was_kept_shows_entries_that_were_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log"
    heads = log(path, 4)
    lines = path.read_bytes().splitlines(True)
    assert with_head(verify(path), heads[1]).problem == ""
    path.write_bytes(b"".join(lines[:2]))
    assert verify(path).problem == ""
    assert with_head(verify(path), heads[1]).problem == ""
    found = with_head(verify(path), heads[3])
    assert found.bad is None and found.problem.startswith("no entry (of 2) has the head")
    path.write_bytes(lines[0] + lines[2])
    changed = verify(path)
    assert changed.bad == 2 and with_head(changed, heads[3]) == changed


def test_half_an_entry_is_moved_aside_and_the_chain_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log(path, 3)
    data = path.read_bytes()
    start = data[:-1].rfind(b"\n") + 1
    for size in range(start + 1, len(data)):
        path.write_bytes(data[:size])
        assert verify(path).bad is None and verify(path).torn == size - start
        made = AuditLog(path)
        assert made.notices == ["The audit log ended in half an entry, which is kept beside it."]
        made.append(entry(9))
        assert len(verify(path).entries) == 3 and verify(path).bad is None
        aside = tmp_path / "log.torn-1"
        assert aside.read_bytes() == data[start:size]
        aside.unlink()


@pytest.mark.parametrize("held", [b"notes of a patient", b"{", b'{"id": 1}\n', b"\n"])
def test_what_is_no_log_is_left_alone(held: bytes, tmp_path: Path) -> None:
    path = tmp_path / "smith"
    path.write_bytes(held)
    if held == b"{":  # may be the beginning of a first entry: it is moved aside, not lost
        AuditLog(path).append(entry(1))
        assert (tmp_path / "smith.torn-1").read_bytes() == held
        return
    with pytest.raises(UsageError, match="entry 1 is bad") as error:
        AuditLog(path)
    assert "smith" not in str(error.value) and "patient" not in str(error.value)
    assert path.read_bytes() == held


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log(path, 1)
    with path.open("ab") as stream:
        stream.write(b'{"n": 2, "time": "')
        stream.truncate(1 << 33)  # zeros that take no room on the disk
    found = verify(path)
    assert found.bad == 2 and not found.torn


def test_places_where_no_log_can_be(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no" / "smith", tmp_path / "smith\0"):
        with pytest.raises(UsageError, match="audit log") as error:
            AuditLog(path)
        assert "smith" not in str(error.value)
    with pytest.raises(UsageError, match="it is not a file"):
        verify(tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        verify(tmp_path / "smith")


@pytest.mark.parametrize("code", [FULL, BROKEN, None])
def test_no_fault_breaks_the_chain(code: int | None, tmp_path: Path) -> None:
    for at in range(1, 100):
        path = tmp_path / str(at)
        heads = log(path, 2)
        files = Faulty("any", at, code)
        with contextlib.suppress(UsageError, Cut):
            heads.append(AuditLog(path, files).append(entry(3)))
        AuditLog(path).append(entry(4))
        found = verify(path)
        assert found.bad is None
        assert [each["hash"] for each in found.entries][: len(heads)] == heads
        if not files.struck:
            break
    assert at > 3


def test_a_file_system_without_locks_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_lock", no_locks)
    made = AuditLog(tmp_path / "log")
    made.append(entry(1))
    (said,) = made.notices
    assert "audit log has no locks" in said


def test_several_runs_write_to_one_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    code = (
        "import sys; from pathlib import Path; from tests.batch.test_audit import *\n"
        "for number in range(20): AuditLog(Path(sys.argv[1])).append(entry(number))"
    )
    command = [sys.executable, "-c", code, str(path)]
    others = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [other.wait() for other in others] == [0, 0, 0]
    found = verify(path)
    assert found.bad is None and len(found.entries) == 60


def test_hashes_of_patient_text_need_the_key_of_the_site(tmp_path: Path) -> None:
    key, output = tmp_path / "key", tmp_path / "output"
    key.write_bytes(b"0123456789abcdef\n")
    output.write_bytes(b"the answers")
    expected = hmac.new(b"0123456789abcdef", b"the answers", "sha256").hexdigest()
    assert output_hmac(output, read_key(key)) == expected
    key.write_bytes(b"short\n")
    with pytest.raises(UsageError, match="less than 16 bytes"):
        read_key(key)
