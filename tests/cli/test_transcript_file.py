from __future__ import annotations

import os
from pathlib import Path

import pytest

from capt_local.cli.talk import TranscriptFile
from capt_local.errors import UsageError


def test_lines_are_there_at_once_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    file = TranscriptFile(path)
    file.add("one", "two")
    assert path.read_text() == "one\ntwo\n"
    assert path.stat().st_mode & 0o777 == 0o600
    file.add("three")
    file.close()
    assert path.read_text() == "one\ntwo\nthree\n"


def test_a_full_disk_leaves_whole_lines_and_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.jsonl"
    file = TranscriptFile(path)
    file.add("one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for line in ("two", "three"):
            with pytest.raises(UsageError, match="No space left"):
                file.add(line)
            assert path.read_text() == "one\n"
    file.add("four")
    file.close()
    assert path.read_text() == "one\ntwo\nthree\nfour\n"


def test_a_file_that_is_there_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for place, says in (
        (path, "there already"),
        (link, "there already"),
        (tmp_path / "no" / "t", "No such file"),
        (tmp_path / ("x" * 300), "too long"),
        (Path("a\0b"), "no file name"),
    ):
        with pytest.raises(UsageError, match=says):
            TranscriptFile(place)
    assert path.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
