"""Conversations out of JSON of others."""

from __future__ import annotations

import pytest

from capt_local.prompting.messages import Message, messages_of
from capt_local.strict_json import NotReadable

CANARY = "zyzzyva"


def user(content: object, **more: object) -> dict[str, object]:
    return {"role": "user", "content": content, **more}


def test_turns_are_taken_in_order() -> None:
    turns = [{"role": "system", "content": ""}, user("q"), {"role": "assistant", "content": "a"}]
    assert messages_of([*turns, user([{"type": "text", "text": CANARY}], name=None)]) == (
        Message("system", ""),
        Message("user", "q"),
        Message("assistant", "a"),
        Message("user", CANARY),
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "must be a list of objects"),
        ({}, "must be a list of objects"),
        ([[]], "must be a list of objects"),
        ([], "conversation is empty"),
        ([{"content": CANARY}], '"role"'),
        ([{"role": ["user"], "content": CANARY}], '"role"'),
        ([{"role": "developer", "content": CANARY}], '"role"'),
        ([user(None)], '"content"'),
        ([user([])], '"content"'),
        ([user([{"type": "text", "text": CANARY}] * 2)], '"content"'),
        ([user([{"type": "text", "text": 5}])], '"content"'),
        ([user([{"type": CANARY, "text": CANARY}])], '"content"'),
        ([user([{"type": "text", "text": "x", CANARY: 1}])], '"content"'),
        ([user("x", **{CANARY: CANARY})], 'more than "role" and "content"'),
        ([user("x"), {"role": "system", "content": CANARY}], "must be the first"),
        ([user(" \n")], "prompt is empty"),
    ],
)
def test_what_is_no_conversation(value: object, said: str) -> None:
    with pytest.raises(NotReadable) as caught:
        messages_of(value)
    assert said in str(caught.value) and CANARY not in str(caught.value)
