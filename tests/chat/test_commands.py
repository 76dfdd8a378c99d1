from __future__ import annotations

from pathlib import Path

import pytest

from capt_local.chat.commands import (
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
    line = f"/{command.name.upper()}  a  b "
    if command.takes:
        assert understood(line) == Call(command.name, "a  b")
    else:
        with pytest.raises(UsageError, match=f"/{command.name} takes nothing"):
            understood(line)


def test_a_pasted_text_that_begins_like_a_command_forgets_nothing() -> None:
    with pytest.raises(UsageError, match="takes nothing") as caught:
        understood("/clear\nzyzzyva")
    assert "zyzzyva" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("What helps?", "What helps?"),
        (" /save is text behind a blank", " /save is text behind a blank"),
        ("/3 x daily\nsecond line", "/3 x daily\nsecond line"),
        ("/unknown\nsecond line", "/unknown\nsecond line"),
        ('"""/save x"""', "/save x"),
        ('"""\n/exit\n\n  two\n"""', "/exit\n\n  two"),
        ('"""never ended', '"""never ended'),
        ("/quit", Call("exit")),
        ("/?", Call("help")),
        ("/system be brief\nand kind", Call("system", "be brief\nand kind")),
    ],
)
def test_lines(line: str, said: object) -> None:
    assert understood(line) == said


@pytest.mark.parametrize(
    ("line", "hint"),
    [("/hepl", "/help"), ("/regenerate x", "/regen"), ("/sav", "/save"), ("/zzzz", "/help lists")],
)
def test_an_unknown_command_names_the_nearest_and_not_what_was_typed(line: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint) as caught:
        understood(line)
    assert line.split()[0] not in str(caught.value).replace(hint, "")


def texts(before: str) -> list[str]:
    return [text for text, _ in offers(before)]


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "note one.txt").touch()
    (tmp_path / "notes").mkdir()
    (tmp_path / ".hidden").touch()
    (tmp_path / "bad\x1b]0;x\x07").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert texts("/read no") == ["note one.txt", "notes/"]
    assert offers("/save note o") == [("note one.txt", 6)]
    assert texts(f"/save {tmp_path}/.h") == [".hidden"]
    assert texts("/read ~/notes") == ["notes/"]
    assert texts("/read missing/x") == texts("/why n") == []
    assert ".hidden" not in texts("/read ")
    assert path_of("~/x") == tmp_path / "x"
    assert path_of("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert texts("/read ~nobody-of-this-name/") == []


START = GenerateOptions()
VALUES = {
    "alpha": "0.5",
    "weights": "0.75,1,0.75",
    "plausibility": "0.1",
    "method": "target",
    "max-tokens": "7",
    "temp": "0.7",
    "top-k": "40",
    "top-p": "0.9",
    "min-p": "0.05",
    "repeat-penalty": "1.1",
    "repeat-last-n": "32",
    "seed": "3",
    "adapter-scales": "expert:1,0.5;target:0",
}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_can_be_changed_and_back(setting) -> None:
    value, before = VALUES[setting.name], setting.of(START)
    new = changed(START, f"{setting.name} {value}")
    assert differences(START, new) == [(setting.name, before, value)]
    assert changed(new, f"{setting.name}={before}") == START


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("alpha 9", "not between -8 and 8"),
        ("temp -1", "not 0 or above"),
        ("max-tokens 0", "below 1"),
        ("top-p 0", "top-p"),
        ("seed -4", "negative"),
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
    for word in ("strong", "magic", "alhpa", "zzz"):
        assert word not in str(caught.value)
