from __future__ import annotations

from pathlib import Path

import pytest

from capt_local.chat.commands import Offer, offers, path_of


def texts(before: str) -> list[str]:
    return [offer.text for offer in offers(before)]


def test_commands() -> None:
    assert texts("/s") == ["/system", "/set", "/show", "/stats", "/save"]
    assert offers("/wh") == [Offer("/why", 3)]
    assert texts("what /s") == texts("a\n/s") == texts("") == []


def test_settings_and_their_values() -> None:
    assert texts("/set to") == ["top-k ", "top-p "]
    assert texts("/set method t") == ["target"]
    assert offers("/regen alpha=e") == [Offer("evidence", 1)]
    assert texts("/regen temp=1 al") == ["alpha="]


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "note one.txt").touch()
    (tmp_path / "notes").mkdir()
    (tmp_path / ".hidden").touch()
    (tmp_path / "bad\x1b]0;x\x07").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert texts("/read no") == ["note one.txt", "notes/"]
    assert offers("/load note o") == [Offer("note one.txt", 6)]
    assert texts(f"/save {tmp_path}/.h") == [".hidden"]
    assert texts("/read ~/notes") == ["notes/"]
    assert texts("/read missing/x") == texts("/why n") == []
    assert ".hidden" not in texts("/read ")
    assert path_of("~/x") == tmp_path / "x"
    assert path_of("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert texts("/read ~nobody-of-this-name/") == []
