"""Inputs made in code: what a record is, templates, lines, tables and folders, hostile files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.batch.readers import InputErrors, InputSource, check_input
from capt_local.batch.records import (
    BatchRecord,
    InputChanged,
    RecordParser,
    RecordTemplate,
    record_seed,
)
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message
from capt_local.strict_json import ParseError

CANARY = "zyzzyva"  # a word of the patient's text


def line(**fields: Any) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def short(id: object = "r1", prompt: str = CANARY, **more: Any) -> bytes:
    return line(id=id, prompt=prompt, **more)


def written(folder: Path, data: bytes, name: str = "in.jsonl") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def checked(path: Path, template: str | None = None, **how: Any) -> InputSource:
    """The source; `how` goes to `RecordParser`."""
    filled = None if template is None else RecordTemplate(template.encode())
    return check_input(path, parser=RecordParser(template=filled, **how))


def records(source: InputSource) -> list[BatchRecord]:
    return [source.record(place) for place in range(len(source))]


def refused(path: Path, template: str | None = None, **how: Any) -> UsageError:
    """The error, which tells nothing of the text."""
    with pytest.raises(UsageError) as caught:
        checked(path, template, **how)
    assert CANARY not in str(caught.value) and "\n" not in str(caught.value)
    return caught.value


def problems(path: Path, template: str | None = None, **how: Any) -> tuple[str, ...]:
    """What is wrong with each record, in order: "line 3: not JSON"."""
    error = refused(path, template, **how)
    assert isinstance(error, InputErrors)
    unit = "file" if path.is_dir() else "line"
    pairs = [(number, why) for why, numbers in error.numbers.items() for number in numbers]
    return tuple(f"{unit} {number}: {why}" for number, why in sorted(pairs))


USER = Message("user", CANARY)


def test_the_forms_of_a_line(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": CANARY}]
    scales = {"expert": [0.5, 1]}
    data = short("a") + line(id=2, messages=turns) + short("c", adapter_scales=scales)
    source = checked(written(tmp_path, data))
    found = records(source)
    assert list(source.ids) == [record.id for record in found] == ["a", "2", "c"]
    assert [record.number for record in found] == [1, 2, 3]
    assert [record.prompt for record in found] == [CANARY, (Message("system", "s"), USER), CANARY]
    assert [each.adapter_scales for each in found] == [None, None, {"expert": (0.5, 1.0)}]


def test_the_system_text_of_the_run(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    turns.append({"role": "user", "content": CANARY})
    path = written(tmp_path, short("a") + line(id="b", messages=turns))
    first, second = records(checked(path, system="be brief"))
    assert first.prompt == (Message("system", "be brief"), USER)
    assert second.prompt[0] == Message("system", "be brief") and len(second.prompt) == 4
    own = [{"role": "system", "content": CANARY}, {"role": "user", "content": "q"}]
    path = written(tmp_path, short("a") + line(id="b", messages=own))
    assert "a system message of its own" in problems(path, system="be brief")[0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, 'one of "prompt" and "messages" is needed'),
        ({"prompt": CANARY, "messages": []}, 'one of "prompt" and "messages" is needed'),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": 5}, '"prompt" must be a text'),
        ({"prompt": f"{CANARY}\0"}, "a text of it holds a NUL byte (0x00) at byte 7"),
        ({"prompt": "x", CANARY: 1}, "it has a field beside the id and"),
        ({"prompt": "x", "max_tokens": 5}, "it has a field beside the id and"),
        ({"prompt": "x", "adapter_scales": {CANARY: ["x"]}}, "adapter_scales must be a number"),
        ({"prompt": "x", "adapter_scales": {CANARY: [99]}}, "The scale of an adapter is"),
        ({"messages": CANARY}, '"messages" must be a list of objects'),
        ({"messages": [{"role": CANARY, "content": "x"}]}, 'the "role" of a message must be'),
        ({"messages": [{"role": "user", "content": f"{CANARY}\0"}]}, "a text of it holds a NUL"),
        ({"messages": [{"role": "assistant", "content": CANARY}]}, "The last message must be"),
        ({"id": None, "prompt": "x"}, 'no "id" (name the field that identifies a record'),
        ({"id": True, "prompt": "x"}, "the id must be a text or a whole number"),
        ({"id": CANARY * 29, "prompt": "x"}, "the id must have 1 to 200 characters"),
        ({"id": f"\u202e{CANARY}", "prompt": "x"}, "the id must be printable"),
        ({"id": f" {CANARY}", "prompt": "x"}, "the id must be printable, with no space at its"),
    ],
)  # fmt: skip
def test_records_that_are_none(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    (found,) = problems(written(tmp_path, line(**{"id": "a", **fields})))
    assert found.startswith(f"line 1: {said}")


def test_the_seed_of_a_record_is_documented_arithmetic() -> None:
    digest = hashlib.sha256(b"capt-local batch seed 1\n7\nnote-1").digest()
    assert record_seed(7, "note-1") == int.from_bytes(digest, "big") >> (256 - 53)
    assert len({record_seed(seed, id) for seed in range(9) for id in ("a", "b", "1\u00e9")}) == 27


def filled(template: str, **fields: Any) -> str:
    return RecordTemplate(template.encode()).render(fields)


def test_fields_are_filled_in() -> None:
    assert filled("Note:\r\n{{ note }}\n", note="a\nb", other=None) == "Note:\na\nb"
    assert filled("{{Note Text}} ({{ age }}) }}", age=7, **{"Note Text": "x"}) == "x (7) }}"


@given(st.text() | st.sampled_from(["{{ 7 * 7 }}", "{% raw %}", "{{ other }}"]), st.text())
def test_any_text_stays_text(note: str, other: str) -> None:
    """Named in docs/threat-model.md."""
    assert filled("{{ note }}|{{ other }}", note=note, other=other) == f"{note}|{other}"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, 'there is no field "note", which the template names'),
        ({"note": None}, "which the template names, is null"),
        ({"note": True}, "which the template names, is true or false"),
        ({"note": [CANARY]}, "which the template names, is a list"),
        ({"note": {CANARY: 1}}, "which the template names, is an object"),
        ({"note": CANARY * 600_000}, "the prompt is larger than 4 MiB"),
    ],
)
def test_what_cannot_be_filled_in(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ParseError) as caught:
        filled("{{ note }}", **fields)
    assert said in str(caught.value) and CANARY not in str(caught.value)


@pytest.mark.parametrize("template", ["x", "{{ note }}\n{% if a %}", "{{ note }}{# a #}", "{{\n}}"])
def test_a_template_has_fields_and_no_language(template: str) -> None:
    with pytest.raises(UsageError, match=r"written as \{\{ note|write one as \{\{ note"):
        RecordTemplate(template.encode())


def test_a_template_is_the_users_message(tmp_path: Path) -> None:
    data = b'{"id": "a", "note": "zyzzyva", "dose": 0.00005, "prompt": "p", "max_tokens": "x"}\n'
    source = checked(written(tmp_path, data), "Short: {{ note }} {{ dose }}", system="s")
    (record,) = records(source)
    # Numbers as they were written.
    assert record.prompt == (Message("system", "s"), Message("user", f"Short: {CANARY} 0.00005"))
    assert record.of == "note" and record.note is not None and record.note.text == CANARY
    assert source.described() == {
        "format": "jsonl",
        "template_sha256": hashlib.sha256(b"Short: {{ note }} {{ dose }}").hexdigest(),
        "system_sha256": hashlib.sha256(b"s").hexdigest(),
        "id_field": "id",
        "raw": False,
    }


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


GOOD = short("good")
C = CANARY.encode()
LONG = 5 << 20


def deep(levels: int) -> bytes:
    inside = "[" * levels + f'"{CANARY}"' + "]" * levels
    return f'{{"id": "d", "prompt": "x", "stop": {inside}}}\n'.encode()


def lines(*data: bytes) -> Callable[[], bytes]:
    return lambda: GOOD + b"".join(data)


# A file, the number and the reason of each line that is refused (none: it is text), its name.
Hostile = tuple[Callable[[], bytes], tuple[str, ...], str]
TWICE, HALF = "2: a key stands there twice", "2: half of a character (a lone surrogate)"
HOSTILE: dict[str, Hostile] = {
    # U+2028 and its like split nothing.
    "U+2028": (lines(short("a", f"{CANARY}\u2028b")), (), "in.jsonl"),
    "raw U+0085 between lines": (
        lines(short("a").rstrip() + "\x85".encode() + short("b")), ("2: not JSON",), "in.jsonl"
    ),
    "id twice": (lines(b'{"id": "a", "id": "b", "prompt": "%s"}\n' % C), (TWICE,), "in.jsonl"),
    "a lone surrogate": (
        lines(b'{"id": "a", "prompt": "%s\\ud83d"}\n' % C), (HALF,), "in.jsonl"
    ),
    "Latin-1": (
        lines(f'{{"id": "a", "prompt": "{CANARY} é"}}\n'.encode("latin-1")),
        ("2: not UTF-8 at byte 31",), "in.jsonl",
    ),
    "UTF-16": (
        lambda: GOOD.decode().encode("utf-16"),
        ("1: not UTF-8 at byte 0 (UTF-16?)", "2: not JSON"), "in.jsonl",
    ),
    "100,000 levels": (lines(deep(100_000)), ("2: nested too deeply",), "in.jsonl"),
    "a line of 5 MiB": (
        lines(short("a", "x" * LONG), b"{\n"), ("2: longer", "3: not JSON"), "in.jsonl"
    ),
    "a BOM": (lambda: b"\xef\xbb\xbf" + GOOD, (), "in.jsonl"),
    "CRLF": (lambda: GOOD.replace(b"\n", b"\r\n") + short("a"), (), "in.jsonl"),
    "a zero byte": (lines(b'{"id": "a", "prompt": "%s\0"}\n' % C), ("2: not JSON",), "in.jsonl"),
    "other values": (
        lines(b"[]\n", b"1\n", b'"%s"\n' % C, b"null\n"),
        tuple(f"{n}: not a JSON object" for n in (2, 3, 4, 5)), "in.jsonl",
    ),
    "CSV with U+2028 and line feeds": (
        lambda: "id,prompt\na,\"zyzzyva\u2028\n\n\x0c\"\nb,x\x85y\n".encode(), (), "in.csv"
    ),
    "CSV that is JSON Lines": (lambda: GOOD + GOOD, ('2: no "id"',), "in.csv"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "wrong", "name"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file(
    data: Callable[[], bytes], wrong: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    path = written(tmp_path, data(), name)
    if wrong:
        for told, expected in zip(problems(path), wrong, strict=True):
            assert told.startswith(f"line {expected}")
        return
    source = checked(path)
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
