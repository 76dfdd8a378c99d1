"""CSV: the same records as JSON Lines would give, with the same checks."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.batch import InputFormat
from capt_local.batch.readers import check_input
from tests.batch.inputs import checked, problems, records, refused, written

ASK = "{{ note }}"


def table(folder: Path, data: bytes) -> Path:
    return written(folder, data, "in.csv")


def test_rows_are_records(tmp_path: Path) -> None:
    data = (
        b"\xef\xbb\xbfid,note,Age Years\r\n"
        b'a,"one, ""two""\nthree\r\nfour",5\r\n'
        b"\r\n"
        b"b,\xe2\x80\xa8five,6"
    )
    path = table(tmp_path, data)
    source = checked(path, "{{ note }}|{{ Age Years }}")
    found = records(source)
    assert [record.prompt for record in found] == [
        'one, "two"\nthree\r\nfour|5',
        "\u2028five|6",
    ]
    assert [record.number for record in found] == [2, 6]
    assert source.ids == ["a", "b"] and source.format is InputFormat.CSV


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "The input is empty; its first line must name the columns."),
        (b"\n\n", "The input is empty; its first line must name the columns."),
        (b"zyzzyva,zyzzyva\n1,2\n", "The input, line 1: two columns have the same name."),
        (b"\nid,,zyzzyva\n", "The input, line 2: a column has no name."),
        (
            b"id;zyzzyva\n1;2\n",
            "column; say with --delimiter what separates the cells.",
        ),
        (
            b"id\tzyzzyva\n",
            "column; say with --delimiter what separates the cells.",
        ),
        (b"id,zyzzyva\xff\n", "The input, line 1: not UTF-8 at byte 10."),
        (b"\xff\xfei\x00d\x00", "The input, line 1: not UTF-8 at byte 0 (UTF-16?)."),
        (
            b"id,zyzzyva\0\n",
            "it holds a NUL byte (0x00) at byte 10 (counted from 0).",
        ),
        (b'id,"zyzzyva\n', "The input, line 1: not CSV (look at its quotation marks)."),
        (b"a," * 1001 + b"b\n", "The input, line 1: more than 1000 columns."),
        (b"id,zyzzyva\n", "The input holds no record."),
    ],
)
def test_headers_that_are_none(data: bytes, said: str, tmp_path: Path) -> None:
    error = refused(table(tmp_path, data), ASK)
    assert str(error).endswith(said)


def test_each_wrong_row_is_told(tmp_path: Path) -> None:
    data = (
        b"id,note\n"
        b"a,x\n"
        b"b,zyzzyva,3\n"
        b"c\n"
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
        "line 4: it has 1 cells, and the first line has 2",
        "line 5: not UTF-8 at byte 9",
        "line 6: not CSV (look at its quotation marks)",
        "line 8: it holds a NUL byte (0x00) at byte 9 (counted from 0)",
        "line 9: not CSV (look at its quotation marks)",
        "line 10: the id must be printable, with no space at its ends",
        "line 12: its id is that of line 2",
    )


def test_a_quotation_mark_that_is_not_closed(tmp_path: Path) -> None:
    rows = b"".join(b"r%d,zyzzyva zyzzyva\n" % number for number in range(300_000))
    found = problems(table(tmp_path, b'id,note\na,x\nb,"zyzzyva\n' + rows), ASK)
    assert found == (
        "line 3: a row of more than 4 MiB, or a quotation mark that is not closed; what "
        "follows it was not checked",
    )
    found = problems(table(tmp_path, b'id,note\na,x\nb,"zyzzyva\nc,y\n'), ASK)
    assert found == ("line 3: not CSV (look at its quotation marks)",)


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
