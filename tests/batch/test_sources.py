"""A checked input: read again by place, changes noticed, little kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from capt_local.batch import InputFormat
from capt_local.batch.readers import check_input
from capt_local.batch.records import InputChanged
from capt_local.errors import UsageError
from tests.batch.inputs import (
    CANARY,
    checked,
    problems,
    records,
    refused,
    short,
    written,
)

THREE = short("a", "one") + b"\r\n" + short("b", "two\u2028") + short("c", "three").rstrip()


def test_records_are_read_again_in_any_order(tmp_path: Path) -> None:
    source = checked(written(tmp_path, b"\xef\xbb\xbf" + THREE))
    assert [source.record(place).prompt for place in (2, 0, 1, 0)] == [
        "three", "one", "two\u2028", "one"
    ]  # fmt: skip
    assert [record.number for record in records(source)] == [1, 3, 4]
    line = THREE.split(b"\n")[2]
    assert source.record(1).digest == hashlib.sha256(line).hexdigest()
    assert source.digest == hashlib.sha256(b"\xef\xbb\xbf" + THREE).hexdigest()
    assert len(source) == 3
    assert source.described() == {
        "format": "jsonl",
        "template_sha256": None,
        "system_sha256": None,
        "id_field": "id",
        "raw": False,
    }


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv"])
def test_changes_are_noticed(tmp_path: Path, name: str) -> None:
    data = THREE if name.endswith("l") else b'id,prompt\na,one\nb,"tw\no"\nc,three\n'
    path = written(tmp_path, data, name)
    source = checked(path)
    path.write_bytes(data.replace(b"tw", CANARY[:2].encode()))
    assert source.record(0).prompt == "one" and source.record(2).prompt == "three"
    with pytest.raises(InputChanged, match=r"line 3: it has changed since the input was checked\."):
        source.record(1)
    path.write_bytes(data[:20])
    with pytest.raises(InputChanged, match=r"line [45]: it has changed"):
        source.record(2)
    path.unlink()
    with pytest.raises(InputChanged, match="line 3: it can no longer be read: No such file"):
        source.record(1)


def test_a_problem_that_many_records_have_is_reported_once(tmp_path: Path) -> None:
    data = short("good") + b"".join(b"{%s\n" % CANARY.encode() for _ in range(50))
    error = refused(written(tmp_path, data))
    assert "lines 2, 3, 4, " in str(error) and "21 and 30 more: not JSON. No model" in str(error)
    assert str(error).count("not JSON") == 1


def test_a_missing_id_is_reported_with_its_remedy(tmp_path: Path) -> None:
    rows = b"note_id,prompt\n" + b"1,x\n" * 500
    error = str(refused(written(tmp_path, rows, "in.csv")))
    assert '480 more: no "id" (name the field' in error and "with --id-field)" in error


def test_invalid_records_can_be_left_out(tmp_path: Path) -> None:
    data = short("a") + b"{%s\n" % CANARY.encode() + short("b", " ") + short("a") + short("c")
    source = check_input(written(tmp_path, data), skip_invalid=True)
    assert source.ids == ["a", "c"] and records(source)[1].number == 5
    assert source.skipped == [
        (2, "not JSON"), (3, "the prompt is empty"), (4, "its id is that of line 1")
    ]  # fmt: skip
    (notice,) = source.notices
    assert notice.startswith("left out of the run (--skip-invalid): line 2: not JSON; line 3: ")
    assert CANARY not in notice
    with pytest.raises(UsageError, match="no valid record"):
        check_input(written(tmp_path, b"{\n"), skip_invalid=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "notes"
    made.mkdir()
    for name, text in (("b.txt", b"two\r\n"), ("a.TXT", b"\xef\xbb\xbfone"), ("é 1.txt", b"3")):
        (made / name).write_bytes(text)
    return made


def test_files_are_records_in_the_order_of_names(folder: Path) -> None:
    source = checked(folder)
    assert source.ids == ["a.TXT", "b.txt", "é 1.txt"] and source.format is InputFormat.TXT_DIR
    found = records(source)
    assert [record.prompt for record in found] == ["one", "two\r\n", "3"]
    assert [record.number for record in found] == [1, 2, 3] and source.notices == []


def test_what_is_no_text_is_told_with_its_place(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "0.txt").write_text(CANARY)
    (folder / "1.txt").mkdir()
    (folder / "2.txt").write_bytes(f"{CANARY}\xff".encode("latin-1"))
    (folder / "3.txt").write_bytes(b"zyzzyva\0")
    (folder / "4.txt").write_bytes(b" \n")
    (folder / "5.txt").write_bytes(b"x" * ((4 << 20) + 1))
    (folder / f"6{CANARY}\n.txt").write_text(CANARY)
    assert problems(folder) == (
        "file 2: cannot be read: Is a directory",
        "file 3: it is not valid UTF-8: byte 7 (counted from 0) is 0xff. Convert it, or name its "
        "encoding: --encoding windows-1252, utf-16",
        "file 4: it holds a NUL byte (0x00) at byte 7 (counted from 0); is it UTF-16? Then give "
        "--encoding utf-16-le",
        "file 5: the prompt is empty",
        "file 6: larger than 4 MiB",
        "file 7: the id must be printable, with no space at its ends",
    )


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
def test_links_and_pipes_are_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / f"{CANARY}.txt"
    outside.write_text(CANARY)
    (folder / "c.txt").symlink_to(outside)
    (folder / "d.txt").symlink_to("b.txt")
    os.mkfifo(folder / "f.txt")
    os.mkfifo(tmp_path / "pipe")
    (folder / "g.txt").symlink_to(tmp_path / "pipe")
    os.link(outside, folder / "h.txt")
    link = "a link; copy the file into the folder"
    assert problems(folder) == (
        f"file 3: {link}",
        f"file 4: {link}",
        "file 5: cannot be read: it is not a file",
        f"file 6: {link}",
    )


def test_a_file_that_changes(folder: Path) -> None:
    source = checked(folder)
    (folder / "b.txt").write_text(CANARY)
    (folder / "é 1.txt").unlink()
    assert source.record(0).prompt == "one"
    with pytest.raises(InputChanged, match="file 2: it has changed since") as changed:
        source.record(1)
    with pytest.raises(InputChanged, match="file 3: it can no longer be read: No such") as gone:
        source.record(2)
    assert CANARY not in f"{changed.value}{gone.value}"
