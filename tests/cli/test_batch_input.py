"""The flags of a batch input: files that say how records are asked, read and checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from capt_local.batch.inputs import InputFormat
from capt_local.cli.batch.input import AskFlags, InputFlags
from capt_local.decoding.options import GenerateOptions
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
    assert AskFlags(system=file(tmp_path, data)).asking().system == text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "The system text (--system) is empty."),
        (b" \n", "The system text (--system) is empty."),
        (b"zyzzyva\0", "The system text (--system) holds a zero character (NUL)."),
        (b"zyzzyva\xff", "The system text (--system) is not valid UTF-8: byte 7"),
        (b"zyzzyva " * 10_000, "The system text (--system) is larger than 64 KiB."),
    ],
)
def test_system_texts_that_are_none(data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        AskFlags(system=file(tmp_path, data)).asking()
    assert str(caught.value).startswith(said) and CANARY not in str(caught.value)


def test_templates_that_are_none(tmp_path: Path) -> None:
    for flags, said in (
        (AskFlags(template=tmp_path / CANARY), "cannot be read: there is no such file"),
        (AskFlags(template=tmp_path), "cannot be read: it is not a file"),
        (AskFlags(template=file(tmp_path, b"{{ zyzzyva")), "has a mistake in line 1"),
        (AskFlags(template=file(tmp_path, b"x" * 70_000, "long")), "is larger than 64 KiB"),
    ):
        with pytest.raises(UsageError) as caught:
            flags.asking()
        assert str(caught.value).startswith(f"The template (--template) {said}")
        assert CANARY not in str(caught.value)


def test_raw_and_system(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--system cannot go with it"):
        AskFlags(system=file(tmp_path, b"x"), raw=True).asking()


def test_all_flags_reach_the_check(tmp_path: Path) -> None:
    flags = InputFlags(
        InputFormat.CSV,
        system=file(tmp_path, b"s", "s"),
        template=file(tmp_path, b"T: {{ note }}\n", "t"),
        id_field="n",
        input=file(tmp_path, b"n,note\nr1,one\n", "table"),
    )
    shares: list[float] = []
    source = flags.check(flags.place, options=GenerateOptions(), progress=shares.append)
    assert source.ids == ("r1",) and shares
    assert source.record(0).prompt == (Message("system", "s"), Message("user", "T: one"))


def test_no_input() -> None:
    with pytest.raises(UsageError, match="There is no input"):
        _ = InputFlags().place
