"""What the script that makes a stick refuses, and what it leaves alone; nothing is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.wheelhouse import __main__ as script
from scripts.wheelhouse.pip import NotBuilt
from scripts.wheelhouse.stick import Order


def build(place: Path, *more: str) -> None:
    keys = [] if more else ["--new-key", str(place.parent / "maker.key")]
    script.run(script.arguments(["-o", str(place), *keys, *more]))


def test_what_others_have_left_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(_: Order, stick: Path, scratch: Path) -> str:
        assert stick.is_dir() and scratch.is_dir()
        (stick / "install.sh").write_text("")
        return "f" * 64

    monkeypatch.setattr(script, "make", make)
    others = tmp_path / "stick.part" / "thesis.txt"
    others.parent.mkdir()
    others.write_text("mine")
    build(tmp_path / "stick")
    assert others.read_text() == "mine"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["stick", "stick.part"]
    umask = (tmp_path / "stick.part").stat().st_mode  # others have to read the stick, too
    assert (tmp_path / "stick").stat().st_mode == umask


def test_nothing_is_left_of_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Order, stick: Path, __: Path) -> str:
        (stick / "install.sh").write_text("")
        raise NotBuilt("no compiler")

    monkeypatch.setattr(script, "make", fail)
    with pytest.raises(NotBuilt, match="no compiler"):
        build(tmp_path / "stick")
    assert not list(tmp_path.iterdir())
