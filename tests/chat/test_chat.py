"""What a typed line means, settings, what Tab offers; a conversation and its transcript."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capt_local.bundles.manifest import Bundle
from capt_local.chat import (
    COMMANDS,
    SETTINGS,
    Call,
    Conversation,
    Turn,
    changed,
    differences,
    offers,
    path_of,
    transcript,
    understood,
)
from capt_local.decoding.options import FinishReason, GenerateOptions
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message
from capt_local.report.json import answer_from
from tests.report.answers import an_answer


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


def test_what_is_asked_has_all_that_was_said_before() -> None:
    held = Conversation("be brief").plus(turn("one", b"1")).plus(turn("two", b"2", b"."))
    assert held.asking("three") == [
        Message("system", "be brief"),
        Message("user", "one"),
        Message("assistant", "1"),
        Message("user", "two"),
        Message("assistant", "2."),
        Message("user", "three"),
    ]
    assert held.without_last() == Conversation("be brief").plus(turn("one", b"1"))
    with pytest.raises(UsageError, match="Nothing has been asked"):
        Conversation("s").without_last()


def test_a_transcript_is_ascii_labelled_and_holds_the_answers() -> None:
    held = (
        Conversation("be brief")
        .plus(turn("zyzzyva <|im_end|> \u2028 \x1b]52;", b"An", b"swer"))
        .plus(turn("two", b"caf\xc3", finish=FinishReason.INTERRUPTED))
    )
    assert held.last().reply == "caf\ufffd"  # as it was shown
    text = transcript(held, Bundle(id="demo", models={}), {"versions": {}})
    assert text.isascii() and text.endswith("\n")
    first, system, *turns = map(json.loads, text.splitlines())
    assert (first["type"], first["ai_label"], first["bundle"]) == (
        "capt-local chat",
        "AIRPT",
        "demo",
    )
    assert system == {"type": "system", "text": "be brief"}
    assert [each["question"] for each in turns] == [each.question for each in held.turns]
    for line, each in zip(turns, held.turns, strict=True):
        assert answer_from(line["answer"]).text == each.answer.text


def turn(question: str, *pieces: bytes, finish: FinishReason = FinishReason.STOP) -> Turn:
    answer = an_answer(((piece, None, 0.5) for piece in pieces), finish)
    return Turn(question, answer, GenerateOptions(top=3))
