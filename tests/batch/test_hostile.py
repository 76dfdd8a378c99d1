"""Hostile inputs, made in code: each is refused with its line, or is text; none ends the check."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.batch.readers import InputErrors, check_input
from capt_local.errors import UsageError
from tests.batch.inputs import (
    CANARY,
    checked,
    line,
    problems,
    records,
    short,
    written,
)

GOOD = short("good")
C = CANARY.encode()
LONG = 5 << 20


@dataclass(frozen=True)
class Hostile:
    """A file, and the number and the reason of each line that is refused; none: it is text."""

    data: Callable[[], bytes]
    wrong: tuple[str, ...] = ()
    name: str = "in.jsonl"
    template: str | None = None


def deep(levels: int) -> bytes:
    inside = "[" * levels + f'"{CANARY}"' + "]" * levels
    return f'{{"id": "d", "prompt": "x", "stop": {inside}}}\n'.encode()


def lines(*data: bytes) -> Callable[[], bytes]:
    return lambda: GOOD + b"".join(data)


NOT_JSON, EMPTY = "not JSON", "not a JSON object"
TWICE, HALF = "a key stands there twice", "half of a character (a lone surrogate)"
DEEP, ID = "nested too deeply", "the id must be printable"
ROW = "a row of more than 4 MiB"

HOSTILE: dict[str, Hostile] = {
    # U+2028 and its like split nothing.
    "U+2028": Hostile(lines(short("a", f"{CANARY}\u2028b"))),
    "raw U+0085 between lines": Hostile(
        lines(short("a").rstrip() + "\x85".encode() + short("b")), ("2: not JSON",)
    ),
    "id twice": Hostile(lines(b'{"id": "a", "id": "b", "prompt": "%s"}\n' % C), (f"2: {TWICE}",)),
    "a lone surrogate": Hostile(
        lines(b'{"id": "a", "prompt": "%s\\ud83d"}\n' % C), (f"2: {HALF}",)
    ),
    "Latin-1": Hostile(
        lines(f'{{"id": "a", "prompt": "{CANARY} é"}}\n'.encode("latin-1")),
        ("2: not UTF-8 at byte 31",),
    ),
    "UTF-16": Hostile(
        lambda: GOOD.decode().encode("utf-16"), ("1: not UTF-8 at byte 0 (UTF-16?)", "2: not JSON")
    ),
    "100,000 levels": Hostile(lines(deep(100_000)), (f"2: {DEEP}",)),
    "a line of 5 MiB": Hostile(lines(short("a", "x" * LONG), b"{\n"), ("2: longer", "3: not JSON")),
    "a BOM": Hostile(lambda: b"\xef\xbb\xbf" + GOOD),
    "CRLF": Hostile(lambda: GOOD.replace(b"\n", b"\r\n") + short("a")),
    "a zero byte": Hostile(
        lines(b'{"id": "a", "prompt": "%s\0"}\n' % C), (f"2: {NOT_JSON}",)
    ),
    "an escaped zero": Hostile(lines(short("a", f"{CANARY}\0")), ("2: a text of it holds",)),
    "an escape sequence in the id": Hostile(lines(short(f"{CANARY}\x1b[2J")), (f"2: {ID}",)),
    "other values": Hostile(
        lines(b"[]\n", b"1\n", b'"%s"\n' % C, b"null\n"),
        tuple(f"{n}: {EMPTY}" for n in (2, 3, 4, 5)),
    ),
    "an id that stands there again": Hostile(
        lines(short("a"), short("good"), short("a")),
        ("3: its id is that of line 1", "4: its id is that of line 2"),
    ),
    "CSV with U+2028 and line feeds": Hostile(
        lambda: "id,prompt\na,\"zyzzyva\u2028\n\n\x0c\"\nb,x\x85y\n".encode(), name="in.csv"
    ),
    "CSV with zero bytes, ragged rows and Latin-1": Hostile(
        lambda: b"id,prompt\na,\0%s\nb\nc,%s,x\nd,\xe9\n" % (C, C),
        ("2: it holds a NUL", "3: it has 1 cells", "4: it has 3 cells", "5: not UTF-8 at byte 2"),
        name="in.csv",
    ),
    "CSV that is JSON Lines": Hostile(
        lambda: GOOD + GOOD, ('2: no "id"',), name="in.csv"
    ),
    "a template over fields of every kind": Hostile(
        lambda: line(id="a", note=f"{{{{ {CANARY} }}}}{{% endfor %}}")
        + line(id="b", note=None)
        + line(id="c", note={"x": CANARY})
        + line(id="d", other=CANARY)
        + line(id="e", note="__class__"),
        ('2: the field "note", which the template names, is null',
         '3: the field "note", which the template names, is an object',
         '4: there is no field "note"'),
        template="{{ note }}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file(hostile: Hostile, tmp_path: Path) -> None:
    path = written(tmp_path, hostile.data(), hostile.name)
    if hostile.wrong:
        found = problems(path, hostile.template)
        assert len(found) == len(hostile.wrong), found
        for told, expected in zip(found, hostile.wrong, strict=True):
            assert told.startswith(f"line {expected}")
        return
    source = checked(path, hostile.template)
    assert [record.id for record in records(source)] == source.ids


FRAGMENT = st.sampled_from(
    [b"{", b"}", b"[", b"]", b'"', b":", b",", b"\n", b"\r", b"\0", b"\\", b"\\ud800", b"\\u0000",
     b'"id"', b'"prompt"', b'"messages"', b'"role"', b'"user"', b"NaN",
     b"1e999", b"-", b"9", b"null", b"true", b"\xef\xbb\xbf", b"\xff", b"\xe2\x80\xa8", b" ",
     GOOD, short("a"), short("b"), b"zyzzyva"]
)  # fmt: skip
ANY = st.lists(FRAGMENT | st.binary(max_size=4), max_size=40).map(b"".join)


@given(ANY, st.sampled_from(["in.jsonl", "in.csv"]))
def test_any_file_is_checked_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str
) -> None:
    path = written(tmp_path_factory.mktemp("any"), data, name)
    try:
        source = check_input(path)
    except UsageError as error:
        assert CANARY not in str(error)
        return
    found = records(source)
    assert [record.id for record in found] == source.ids
    assert all(data.split(b"\n")[record.number - 1].strip() for record in found)


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content", "model", "messages", "x"]), inner),
    max_leaves=8,
)  # fmt: skip
NAMES = ["id", "prompt", "messages", "adapter_scales", "note", "x"]


@given(st.dictionaries(st.sampled_from(NAMES), VALUE), st.booleans())
def test_any_object_is_a_record_or_refused(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, object], filled: bool
) -> None:
    path = written(tmp_path_factory.mktemp("any"), json.dumps({"id": "a", **fields}).encode())
    try:
        source = checked(path, "{{ note }}{{ prompt }}" if filled else None)
    except InputErrors as error:
        assert [1] in error.numbers.values() and len(error.numbers) == 1
        return
    (record,) = records(source)
    assert record.prompt and record.id == source.ids[0]
