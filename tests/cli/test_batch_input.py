"""The flags of a batch input: files that say how records are asked, read and checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from capt_local.batch import InputFormat
from capt_local.batch.readers import check_input
from capt_local.cli.batch import InputFlags
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message

CANARY = "zyzzyva"


def file(folder: Path, data: bytes, name: str = "f") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xef\xbb\xbfBe brief.\r\n", "Be brief."),
        (b"Be brief.\n\n", "Be brief.\n"),
        (b"{{ note }}", "{{ note }}"),
    ],
)
def test_a_system_text_is_a_file(data: bytes, text: str, tmp_path: Path) -> None:
    assert InputFlags(system=file(tmp_path, data)).parser().system == text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "The system text (--system) is empty."),
        (b" \n", "The system text (--system) is empty."),
        (b"zyzzyva\0", "The system text (--system) holds a NUL byte (0x00) at byte 7"),
        (b"zyzzyva\xff", "The system text (--system) is not valid UTF-8: byte 7"),
        (b"zyzzyva " * 10_000, "The system text (--system) is larger than 64 KiB."),
    ],
)
def test_system_texts_that_are_none(data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        InputFlags(system=file(tmp_path, data)).parser()
    assert str(caught.value).startswith(said) and CANARY not in str(caught.value)


def test_templates_that_are_none(tmp_path: Path) -> None:
    for flags, said in (
        (InputFlags(template=tmp_path / CANARY), "cannot be read: there is no such file"),
        (InputFlags(template=tmp_path), "cannot be read: it is not a file"),
        (InputFlags(template=file(tmp_path, b"{{ zyzzyva")), "has a mistake in line 1"),
        (InputFlags(template=file(tmp_path, b"x" * 70_000, "long")), "is larger than 64 KiB"),
    ):
        with pytest.raises(UsageError) as caught:
            flags.parser()
        assert str(caught.value).startswith(f"The template (--template) {said}")
        assert CANARY not in str(caught.value)


def test_raw_and_system(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--system cannot go with it"):
        InputFlags(system=file(tmp_path, b"x"), raw=True).parser()


def test_all_flags_reach_the_check(tmp_path: Path) -> None:
    flags = InputFlags(
        InputFormat.CSV,
        system=file(tmp_path, b"s", "s"),
        template=file(tmp_path, b"T: {{ note }}\n", "t"),
        id_field="n",
        input=file(tmp_path, b"n,note\nr1,one\n", "table"),
    )
    source = check_input(flags.path, flags.input_format, parser=flags.parser())
    assert source.ids == ("r1",)
    assert source.record(0).prompt == (Message("system", "s"), Message("user", "T: one"))


def test_no_input() -> None:
    with pytest.raises(UsageError, match="There is no input"):
        _ = InputFlags().path
