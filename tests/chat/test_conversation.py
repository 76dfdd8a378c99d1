from __future__ import annotations

import pytest

from capt_local.chat.conversation import Conversation, with_notes
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


@pytest.mark.parametrize(
    ("notes", "typed", "asked"),
    [
        ((), "why?", "why?"),
        (("a note\n",), "why?", "a note\n\n\nwhy?"),
        (("one", "two"), "", "one\n\ntwo"),
        (("one",), "  ", "one"),
    ],
)
def test_notes_stand_before_the_question(notes: tuple[str, ...], typed: str, asked: str) -> None:
    assert with_notes(notes, typed) == asked
