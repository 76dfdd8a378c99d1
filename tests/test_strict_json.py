"""Bytes of others: what is taken, what is refused, and that nothing of it is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.errors import UsageError
from capt_local.strict_json import (
    DEEPEST,
    ParseError,
    lines,
    parse_json,
    read_bytes,
)

CANARY = "zyzzyva"


def refusal(data: bytes) -> str:
    with pytest.raises(ParseError) as caught:
        parse_json(data)
    assert CANARY not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"zyzzyva", "not JSON"),
        (b'"zyzzyva\x00"', "not JSON"),
        (b'"zyzzyva\n"', "not JSON"),
        (b"", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"zyzzyva": 1, "zyzzyva": 2}', "a key stands there twice"),
        (b'{"a": 1, "\\u0061": 2}', "a key stands there twice"),
        (b'["zyzzyva", NaN]', "NaN and infinity are not JSON"),
        (b"-Infinity", "NaN and infinity are not JSON"),
        (b"1e999", "a number is too large"),
        (b"9" * 1001, "a number has more than 1000 digits"),
        (b'"zyzzyva \\ud800"', "half of a character (a lone surrogate)"),
        (b'{"\\uDFFF": 1}', "half of a character (a lone surrogate)"),
        (b'["\\udc00\\ud800"]', "half of a character (a lone surrogate)"),
        (b'"zyzzyva \xff"', "not UTF-8 at byte 9"),
        (b"\xff\xfe{\x00", "not UTF-8 at byte 0 (UTF-16?)"),
        (b'"\xed\xa0\x80"', "not UTF-8 at byte 1"),
        (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), "nested too deeply"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested too deeply"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_refused(data: bytes, said: str) -> None:
    assert refusal(data) == said


def test_what_is_taken() -> None:
    deep = b"[" * DEEPEST + b"]" * DEEPEST
    assert json.dumps(parse_json(deep)).encode() == deep
    assert parse_json(b"[[],[],[]]" * 1) == [[], [], []]
    assert parse_json(b"[" + b",".join([b"[]"] * 500) + b"]") == [[]] * 500
    assert parse_json('"\u2028\\ud83d\\ude00\\u0000"'.encode()) == "\u2028\U0001f600\0"
    assert parse_json(b"9" * 1000) == int("9" * 1000)
    assert parse_json(b' {"a": -0.5e1}\r') == {"a": -5.0}


def test_numbers_as_they_were_written() -> None:
    data = b"[4.10, 0.00005, 1E2, -0.0, 7, 123456789012345678901234567890]"
    found = parse_json(data, as_written=True)
    assert isinstance(found, list)
    assert f"[{', '.join(map(str, found))}]".encode() == data
    assert found == parse_json(data) and found[0] + 1 == 4.1 + 1
    assert str(parse_json(b"0.00005")) == "5e-05"
    with pytest.raises(ParseError, match="a number is too large"):
        parse_json(b"[1e999]", as_written=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("ab\u2028é"), inner),
    max_leaves=20,
)  # fmt: skip


@given(JSON, st.booleans())
def test_what_json_writes_is_read(value: object, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary())
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        found = parse_json(data)
    except ParseError:
        return
    assert json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


def test_only_a_line_feed_ends_a_line() -> None:
    data = "a\u2028b\x0bc\x0cd\x85e\x1cf\r\n\n \t\r\ng".encode()
    assert list(lines(data)) == [(1, data.split(b"\n")[0]), (4, b"g")]


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"\xef\xbb\xbfab")
    assert read_bytes(path, "The file") == b"ab"
    with pytest.raises(UsageError, match="The file is larger than 0 KiB"):
        read_bytes(path, "The file", largest=4)
    assert read_bytes(path, "The file", largest=5) == b"ab"
    for place, said in (
        (tmp_path, "Is a directory"),
        (tmp_path / CANARY, "there is no such file"),
        (tmp_path / (CANARY * 100), "File name too long"),
        (Path(f"{CANARY}\0"), "no access"),
        (path / CANARY, "Not a directory"),
    ):
        with pytest.raises(UsageError, match=f"The file cannot be read: {said}") as caught:
            read_bytes(place, "The file", pipes=True)
        assert CANARY not in str(caught.value)
