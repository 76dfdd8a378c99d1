"""A checked input: lines, tables and folders give the same records; changes are noticed."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.batch.readers import check_input
from capt_local.batch.records import InputChanged
from capt_local.errors import UsageError
from tests.batch.inputs import CANARY, checked, problems, records, refused, short, written

THREE = short("a", "one") + b"\r\n" + short("b", "two\u2028") + short("c", "three").rstrip()
ASK = "{{ note }}"


def test_records_are_read_again_in_any_order(tmp_path: Path) -> None:
    source = checked(written(tmp_path, b"\xef\xbb\xbf" + THREE))
    assert [source.record(place).prompt for place in (2, 0, 1, 0)] == [
        "three", "one", "two\u2028", "one"
    ]  # fmt: skip
    assert [record.number for record in records(source)] == [1, 3, 4]
    line = THREE.split(b"\n")[2]
    assert source.record(1).digest == hashlib.sha256(line).hexdigest()
    assert source.digest == hashlib.sha256(b"\xef\xbb\xbf" + THREE).hexdigest()


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
    error = str(refused(written(tmp_path, data)))
    assert "lines 2, 3, 4, " in error and "21 and 30 more: not JSON. No model" in error
    assert error.count("not JSON") == 1
    error = str(refused(written(tmp_path, b"note_id,prompt\n" + b"1,x\n" * 500, "in.csv")))
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
    with pytest.raises(UsageError, match="no valid record"):
        check_input(written(tmp_path, b"{\n"), skip_invalid=True)


def table(folder: Path, data: bytes) -> Path:
    return written(folder, data, "in.csv")


def test_rows_are_records(tmp_path: Path) -> None:
    data = (
        b"\xef\xbb\xbfid,note,Age Years\r\n"
        b'a,"one, ""two""\nthree\r\nfour",5\r\n'
        b"\r\n"
        b"b,\xe2\x80\xa8five,6"
    )
    source = checked(table(tmp_path, data), "{{ note }}|{{ Age Years }}")
    found = records(source)
    assert [record.prompt for record in found] == [
        'one, "two"\nthree\r\nfour|5', "\u2028five|6"
    ]  # fmt: skip
    assert [record.number for record in found] == [2, 6] and source.ids == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\n\n", "The input is empty; its first line must name the columns."),
        (b"zyzzyva,zyzzyva\n1,2\n", "line 1: two columns have the same name."),
        (b"\nid,,zyzzyva\n", "line 2: a column has no name."),
        (b"id;zyzzyva\n1;2\n", "column; say with --delimiter what separates the cells."),
        (b"id,zyzzyva\xff\n", "line 1: not UTF-8 at byte 10."),
        (b'id,"zyzzyva\n', "line 1: not CSV (look at its quotation marks)."),
        (b"a," * 1001 + b"b\n", "line 1: more than 1000 columns."),
        (b"id,zyzzyva\n", "The input holds no record."),
    ],
)
def test_headers_that_are_none(data: bytes, said: str, tmp_path: Path) -> None:
    assert str(refused(table(tmp_path, data), ASK)).endswith(said)


def test_each_wrong_row_is_told(tmp_path: Path) -> None:
    data = (
        b"id,note\n"
        b"a,x\n"
        b"b,zyzzyva,3\n"
        b"d,zyzzyva\xff\n"
        b'e,"zyzzyva\nzyzzyva" y\n'
        b"f,zyzzyva\0\n"
        b"g,zyz\rzyva\n"
        b'"h\n",zyzzyva\n'
        b"a,zyzzyva\n"
        b"i,x\n"
    )
    assert problems(table(tmp_path, data), ASK) == (
        "line 3: it has 3 cells, and the first line has 2",
        "line 4: not UTF-8 at byte 9",
        "line 5: not CSV (look at its quotation marks)",
        "line 7: it holds a NUL byte (0x00) at byte 9 (counted from 0)",
        "line 8: not CSV (look at its quotation marks)",
        "line 9: the id must be printable, with no space at its ends",
        "line 11: its id is that of line 2",
    )


def test_a_quotation_mark_that_is_not_closed(tmp_path: Path) -> None:
    rows = b"".join(b"r%d,zyzzyva zyzzyva\n" % number for number in range(300_000))
    found = problems(table(tmp_path, b'id,note\na,x\nb,"zyzzyva\n' + rows), ASK)
    assert found == (
        "line 3: a row of more than 4 MiB, or a quotation mark that is not closed; what "
        "follows it was not checked",
    )


CELL = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(CELL.filter(str.strip), min_size=1, max_size=5), st.sampled_from(["\n", "\r\n"]))
def test_what_the_library_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str], end: str
) -> None:
    text = io.StringIO()
    # Some versions of the library leave a carriage return alone without quotation marks.
    writer = csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "prompt"), *((str(place), cell) for place, cell in enumerate(cells))])
    path = table(tmp_path_factory.mktemp("csv"), text.getvalue().encode())
    source = check_input(path)
    assert [source.record(place).prompt for place in reversed(range(len(source)))] == cells[::-1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "notes"
    made.mkdir()
    for name, text in (("b.txt", b"two\r\n"), ("a.TXT", b"\xef\xbb\xbfone"), ("é 1.txt", b"3")):
        (made / name).write_bytes(text)
    return made


def test_files_are_records_in_the_order_of_names(folder: Path) -> None:
    source = checked(folder)
    assert source.ids == ["a.TXT", "b.txt", "é 1.txt"] and source.described()["format"] == "txt-dir"
    assert [record.prompt for record in records(source)] == ["one", "two\r\n", "3"]
    (folder / "b.txt").write_text(CANARY)
    (folder / "é 1.txt").unlink()
    assert source.record(0).prompt == "one"
    with pytest.raises(InputChanged, match=r"file 2: it has changed since the input was checked\."):
        source.record(1)
    with pytest.raises(InputChanged, match=r"file 3: it can no longer be read: No such file"):
        source.record(2)


def test_what_is_no_text_is_told_with_its_place(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "0.txt").write_text(CANARY)
    (folder / "1.txt").mkdir()
    (folder / "2.txt").write_bytes(f"{CANARY}\xff".encode("latin-1"))
    (folder / "3.txt").write_bytes(b"zyzzyva\0")
    (folder / "4.txt").write_bytes(b" \n")
    (folder / "5.txt").write_bytes(b"x" * ((4 << 20) + 1))
    (folder / f"6{CANARY}\n.txt").write_text(CANARY)
    (folder / "7.txt").symlink_to(tmp_path / "elsewhere.txt")
    os.mkfifo(folder / "8.txt")
    assert [told.split(". ")[0].split(";")[0] for told in problems(folder)] == [
        "file 2: cannot be read: Is a directory",
        "file 3: it is not valid UTF-8: byte 7 (counted from 0) is 0xff",
        "file 4: it holds a NUL byte (0x00) at byte 7 (counted from 0)",
        "file 5: the prompt is empty",
        "file 6: larger than 4 MiB",
        "file 7: the id must be printable, with no space at its ends",
        "file 8: a link",
        "file 9: cannot be read: it is not a file",
    ]
