"""A folder of text files as an input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from capt_local.batch import InputFormat
from capt_local.batch.records import InputChanged
from tests.batch.inputs import CANARY, checked, problems, records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "notes"
    made.mkdir()
    for name, text in (("b.txt", b"two\r\n"), ("a.TXT", b"\xef\xbb\xbfone"), ("é 1.txt", b"3")):
        (made / name).write_bytes(text)
    return made


def test_files_are_records_in_the_order_of_names(folder: Path) -> None:
    source = checked(folder)
    assert source.ids == ("a.TXT", "b.txt", "é 1.txt") and source.format is InputFormat.TXT_DIR
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
        "file 2: not a regular file",
        "file 3: not UTF-8 at byte 7",
        "file 4: a text of it holds a NUL byte (0x00) at byte 7 (counted from 0)",
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
        "file 5: not a regular file",
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
    assert "has changed since it was checked" in (source.changed() or "")


def test_what_is_written_beside_the_texts_is_no_change_of_them(folder: Path) -> None:
    source = checked(folder)
    (folder / "answers.jsonl").write_text("{}\n")
    (folder / "answers.jsonl.run.json").write_text("{}\n")
    assert source.changed() is None
    (folder / "another.txt").write_text(CANARY)
    assert "what was added to it was not read" in (source.changed() or "")
