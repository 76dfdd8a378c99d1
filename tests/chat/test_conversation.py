from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from capt_local.chat.conversation import (
    CLEAR,
    UNDO,
    Conversation,
    Speakers,
    read_transcript,
    system_line,
    transcript,
    turn_line,
)
from capt_local.decoding.step import FinishReason
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message
from tests.chat.turns import turn


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


def test_a_turn_taken_back_is_the_conversation_before_it() -> None:
    one = Conversation(None).plus(turn("one", b"1"))
    assert one.plus(turn("two", b"2")).without_last() is not one
    assert one.plus(turn("two", b"2")).without_last() == one
    assert one.without_last().messages() == []
    with pytest.raises(UsageError, match="Nothing has been asked"):
        Conversation("s").without_last()


def test_half_a_character_is_in_the_conversation_as_it_was_shown() -> None:
    assert turn("q", b"caf\xc3").reply == "caf\ufffd"


US = Speakers("demo", {"target": "a" * 64, "expert": None, "base": None})
CANARY = "zyzzyva"
HELD = (
    Conversation("be brief")
    .plus(turn(f"{CANARY} <|im_end|> \u2028 \x1b]52;", b"An", b"swer"))
    .plus(turn("two", b"caf\xc3", finish=FinishReason.INTERRUPTED))
)
FILE = transcript(HELD, US.line({"versions": {}}))


def test_a_conversation_comes_back_as_it_was() -> None:
    found = read_transcript(FILE.encode(), US)
    assert found.messages() == HELD.messages()
    for old, new in zip(HELD.turns, found.turns, strict=True):
        assert new.answer.finish is old.answer.finish
        assert new.options is None
        for first, second in zip(old.answer.steps, new.answer.steps, strict=True):
            assert replace(first, finish=None) == replace(second, finish=None)
    assert transcript(found, US.line({"versions": {}})) == FILE


def test_each_line_is_ascii_and_labelled() -> None:
    assert FILE.isascii() and FILE.endswith("\n")
    first, _, one, _ = map(json.loads, FILE.splitlines())
    assert first["ai_label"] == "AIRPT" and first["models"] == US.digests
    assert one["answer"]["provenance"] == {"method": "capt"}
    assert one["answer"]["choices"][0]["logprobs"]["content"]


def test_a_running_transcript_is_read_to_where_it_ended() -> None:
    lines = [
        US.line({}),
        turn_line(turn("gone", b"x")),
        CLEAR,
        system_line("one"),
        turn_line(turn("kept", b"a")),
        turn_line(turn("taken back", b"b")),
        UNDO,
        system_line(None),
    ]
    found = read_transcript("".join(f"{line}\r\n" for line in lines).encode(), US)
    assert [each.question for each in found.turns] == ["kept"] and found.system is None


@pytest.mark.parametrize(
    "other", [Speakers("else", US.digests), Speakers("demo", {"target": "b" * 64})]
)
def test_a_conversation_of_other_models_is_refused(other: Speakers) -> None:
    with pytest.raises(UsageError, match="with other models"):
        read_transcript(FILE.encode(), other)


def changed(number: int, **fields: Any) -> bytes:
    lines = [json.loads(line) for line in FILE.splitlines()]
    lines[number - 1] |= fields
    return "\n".join(map(json.dumps, lines)).encode()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "Line 1"),
        (b"\xff\xfe", "Line 1"),
        (b"{}", "no saved conversation"),
        (changed(1, schema=2), "another version"),
        (changed(1, type="x"), "no saved conversation"),
        (changed(2, text=4), "Line 2"),
        (changed(3, question=" "), "Line 3"),
        (changed(3, question="\ud800"), "Line 3"),
        (changed(3, answer={}), "Line 3"),
        (FILE.encode()[:-40], "Line 4"),
        (f"{FILE}{UNDO}\n{UNDO}\n{UNDO}\n".encode(), "Line 7"),
        (FILE.encode() + b"\n", "Line 5"),
        (FILE.encode() + b'{"type":"undo","type":"clear"}', "Line 5"),
        (FILE.encode() + b'{"type":NaN}', "Line 5"),
        (FILE.encode() + b"[" * 100_000, "Line 5"),
    ],
)
def test_a_broken_file_is_one_line_that_tells_where(data: bytes, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        read_transcript(data, US)
    assert "\n" not in str(caught.value) and CANARY not in str(caught.value)
