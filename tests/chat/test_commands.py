"""What a typed line means, which settings can be changed, what Tab offers."""

from __future__ import annotations

from pathlib import Path

import pytest

from capt_local.chat import (
    COMMANDS,
    SETTINGS,
    Call,
    changed,
    differences,
    offers,
    path_of,
    understood,
)
from capt_local.decoding.options import GenerateOptions
from capt_local.errors import UsageError


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_is_understood(command) -> None:
    assert understood(f"/{command.name}") == Call(command.name)
    line = f"/{command.name.upper()}  a\nzyzzyva "
    if command.takes:
        assert understood(line) == Call(command.name, "a\nzyzzyva")
    else:  # a pasted text that begins like a command forgets nothing
        with pytest.raises(UsageError, match="takes nothing") as caught:
            understood(line)
        assert "zyzzyva" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("What helps?", "What helps?"),
        (" /save is text behind a blank", " /save is text behind a blank"),
        ("/3 x daily\nsecond line", "/3 x daily\nsecond line"),
        ("/unknown\nsecond line", "/unknown\nsecond line"),
        ("/quit", Call("exit")),
        ("/?", Call("help")),
    ],
)
def test_lines(line: str, meant: object) -> None:
    assert understood(line) == meant


@pytest.mark.parametrize(("line", "hint"), [("/hepl", "/help"), ("/zzzz", "/help lists")])
def test_an_unknown_command_names_the_nearest_and_not_what_was_typed(line: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint) as caught:
        understood(line)
    assert line not in str(caught.value)


def test_files_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "note one.txt").touch()
    (tmp_path / "notes").mkdir()
    (tmp_path / ".hidden").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert offers("/read no") == [("note one.txt", 2), ("notes/", 2)]
    assert offers(f"/save {tmp_path}/.h") == [(".hidden", 2)]
    assert offers("/read ~/notes") == [("notes/", 5)]
    assert offers("/read missing/x") == offers("/why n") == []
    assert path_of("~/x") == tmp_path / "x"
    assert offers("/read ~nobody-of-this-name/") == []
    assert offers("/set al") == [("alpha ", 2)] and offers("/regen al") == [("alpha=", 2)]


START = GenerateOptions()
VALUES = (
    *("0.5", "0.75,1,0.75", "0.1", "target", "7", "0.7", "40", "0.9", "0.05", "1.1", "32", "3"),
    "expert:1,0.5;target:0",
)


@pytest.mark.parametrize(("setting", "value"), list(zip(SETTINGS, VALUES, strict=True)))
def test_every_setting_can_be_changed_and_back(setting, value: str) -> None:
    before = setting.of(START)
    new = changed(START, f"{setting.name} {value}")
    assert differences(START, new) == [(setting.name, before, value)]
    assert changed(new, f"{setting.name}={before}") == START


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("alpha 9", "not between -8 and 8"),
        ("temp -1", "not 0 or above"),
        ("alpha strong", "'evidence'"),
        ("weights 1,2", "takes A,B,C"),
        ("method magic", "one of"),
        ("alhpa 1", "nearest is alpha"),
        ("alpha", "NAME VALUE"),
        ("", "NAME VALUE"),
    ],
)
def test_what_has_no_meaning_is_refused_as_for_the_flags(typed: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        changed(START, typed)
    assert not {"strong", "magic", "alhpa"} & set(str(caught.value).split())
