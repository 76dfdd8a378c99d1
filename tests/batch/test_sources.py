"""A checked input: read again by place, changes noticed, little kept."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path

import pytest

from capt_local.batch import InputFormat
from capt_local.batch.readers import InputErrors, check_input
from capt_local.batch.records import InputChanged, RecordParser, RecordTemplate, TemplateFailed
from capt_local.errors import Cancelled, UsageError
from capt_local.prompting.sandbox import Limits
from tests.batch.inputs import (
    CANARY,
    checked,
    expanded,
    line,
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
    assert ("c" in source, "d" in source, len(source)) == (True, False, 3)
    assert source.described() == {
        "format": "jsonl",
        "template_sha256": None,
        "system_sha256": None,
        "id_field": "id",
        "raw": False,
    }
    for place in (-1, 3):
        with pytest.raises(IndexError):
            source.record(place)


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv"])
def test_changes_are_noticed(tmp_path: Path, name: str) -> None:
    data = THREE if name.endswith("l") else b'id,prompt\na,one\nb,"tw\no"\nc,three\n'
    path = written(tmp_path, data, name)
    source = checked(path)
    assert source.changed() is None
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
    assert "has changed since it was checked" in (source.changed() or "")


def test_a_template_that_takes_too_long_later_fails_that_record(tmp_path: Path) -> None:
    limits = Limits(seconds=30.0)
    program = b"{% for x in range(999) %}{{ note }}{% endfor %}"
    parser = RecordParser(template=RecordTemplate(program, limits))
    source = check_input(written(tmp_path, line(id="a", note=CANARY)), parser=parser)
    assert source.record(0).prompt
    # As on a machine that is busy now.
    parser.template.limits = dataclasses.replace(limits, seconds=0.0)  # type: ignore[union-attr]
    with pytest.raises(TemplateFailed, match=r"line 1: the template was stopped: ") as caught:
        source.record(0)
    assert CANARY not in str(caught.value)


def test_an_input_that_is_being_written(tmp_path: Path) -> None:
    path = written(tmp_path, THREE)

    def write(_: float) -> None:
        path.write_bytes(THREE + b"\n" + short("d"))

    with pytest.raises(UsageError, match="written to while it was checked"):
        check_input(path, progress=write)


def test_standard_input_is_kept_in_memory(tmp_path: Path) -> None:
    source = check_input(Path("-"), stdin=io.BytesIO(THREE))
    assert [record.id for record in records(source)] == ["a", "b", "c"]
    assert source.changed() is None and not list(tmp_path.iterdir())
    rows = io.BytesIO(b"id,prompt\n1,x\n")
    assert check_input(Path("-"), InputFormat.CSV, stdin=rows).ids == ("1",)


def test_a_problem_that_many_records_have_is_reported_once(tmp_path: Path) -> None:
    data = short("good") + b"".join(b"{%s\n" % CANARY.encode() for _ in range(50))
    error = refused(written(tmp_path, data))
    assert "lines 2, 3, 4, " in str(error) and "21 and 30 more: not JSON. No model" in str(error)
    assert str(error).count("not JSON") == 1


def test_a_missing_id_is_reported_with_the_fields_there_are(tmp_path: Path) -> None:
    rows = b"note_id,prompt\n" + b"1,x\n" * 500
    error = str(refused(written(tmp_path, rows, "in.csv")))
    assert '480 more: no "id" (name the field' in error
    assert "--id-field; there are: note_id, prompt)" in error
    error = str(refused(written(tmp_path, line(key=1, prompt="x") + line(key=2, prompt="y"))))
    assert "there are: key, prompt)" in error
    # A table without a header has text of patients there.
    error = str(refused(written(tmp_path, f"{CANARY} has,a cough\n1,x\n".encode(), "in.csv")))
    assert "there are" not in error and "--id-field" in error


def test_invalid_records_can_be_left_out(tmp_path: Path) -> None:
    data = short("a") + b"{%s\n" % CANARY.encode() + short("b", " ") + short("a") + short("c")
    source = check_input(written(tmp_path, data), skip_invalid=True)
    assert source.ids == ("a", "c") and records(source)[1].number == 5
    assert source.skipped == [
        (2, "not JSON"), (3, "the prompt is empty"), (4, "its id is that of line 1")
    ]  # fmt: skip
    (notice,) = source.notices
    assert notice.startswith("left out of the run (--skip-invalid): line 2: not JSON; line 3: ")
    assert CANARY not in notice
    with pytest.raises(UsageError, match="no valid record"):
        check_input(written(tmp_path, b"{\n"), skip_invalid=True)


def test_the_check_can_be_watched_and_stopped(tmp_path: Path) -> None:
    path = written(tmp_path, b"".join(short(number) for number in range(2000)))
    shares: list[float] = []
    check_input(path, progress=shares.append)
    assert len(shares) == 4 and shares == sorted(shares) and 0 < shares[0] < shares[-1] <= 1

    def stop(_: float) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        check_input(path, progress=stop)


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path) -> None:
    long = b'{"id": "x", "prompt": "' + b"z" * (5 << 20) + b'"}\n'
    error = refused(written(tmp_path, short("a") + long + short("b") + b"[]\n" + long.rstrip()))
    assert isinstance(error, InputErrors)
    assert expanded(error) == (
        "line 2: longer than 4 MiB",
        "line 4: not a JSON object",
        "line 5: longer than 4 MiB",
    )
