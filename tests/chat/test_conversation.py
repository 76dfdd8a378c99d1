"""A conversation as values, and the lines of its transcript."""

from __future__ import annotations

import json

import pytest

from capt_local.bundles.manifest import Bundle
from capt_local.chat import Conversation, Turn, transcript
from capt_local.decoding.options import FinishReason, GenerateOptions
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message
from capt_local.report.json import Answer, answer_from
from tests.report.answers import step


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
    steps = [step(index, piece) for index, piece in enumerate(pieces)]
    answer = Answer(
        steps=steps,
        text=b"".join(pieces),
        finish=finish,
        model="demo",
        prompt_tokens={"target": 7, "expert": 8, "base": 8},
        context_limit=64,
        weights=(((1.0, 0.5, 0.5), 1.0),),
        provenance={"method": "capt"},
        created=1,
        id="capt-1",
    )
    return Turn(question, answer, GenerateOptions(top=3))
