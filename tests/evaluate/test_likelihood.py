"""Sums over items, and items that do not fit."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest

from capt_local.decoding.answers import AnswerScore, Choosing, Chosen
from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.scoring import TextScore
from capt_local.errors import Cancelled, ContextOverflow
from capt_local.evaluate.score import (
    ChoiceQuestion,
    Continuation,
    Likelihood,
    ScoreInput,
    ScoreOptions,
    Text,
    Total,
    measure,
)
from capt_local.runtime import Runtime

ITEMS: list[ScoreInput] = [
    Text("t", b"fever"),
    Continuation("c", "Why?", b"so"),
    Continuation("long", "Why?", b"x" * 99),
    ChoiceQuestion("q", "Which?", ("yes", "no"), 1),
    ChoiceQuestion("open", "Which?", ("yes", "no")),
]


class Fake:
    """Says what it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def score(self, text: bytes, options: object, *, cancel: Any) -> TextScore:
        if cancel is not None and cancel():
            raise Cancelled("stopped")
        return TextScore(10.0, 3, len(text), 2)

    def score_answer(
        self, prompt: object, answer: bytes, options: object, **how: Any
    ) -> AnswerScore:
        self.asked.append(how)
        if len(answer) > 50:
            raise ContextOverflow({"target": 99}, 50)
        return AnswerScore(2.0, 1, len(answer), greedy=True)

    def choose(self, prompt: object, choices: Any, options: object, **how: Any) -> Chosen:
        self.asked.append(how)
        if how["how"] is Choosing.CONSTRAINED:
            return Chosen(1)
        return Chosen(1, (AnswerScore(3.0, 1, 3, False), AnswerScore(1.0, 1, 2, False)))


def found(scoring: ScoreOptions | None = None, **how: Any) -> tuple[list[Likelihood], Fake]:
    fake = Fake()
    runtime = cast(Runtime, fake)
    return list(measure(runtime, ITEMS, GenerateOptions(), scoring, **how)), fake


def test_each_item_is_measured_by_its_kind() -> None:
    items, _ = found()
    assert items == [
        Likelihood("t", 10.0, 5, 3, windows=2),
        Likelihood("c", 2.0, 2, 1, greedy=True),
        Likelihood("long", error=str(ContextOverflow({"target": 99}, 50))),
        Likelihood("q", 1.0, 2, 1, chosen=1, logps=(-3.0, -1.0), correct=True),
        Likelihood("open", chosen=1, logps=(-3.0, -1.0)),
    ]


def test_the_sum() -> None:
    total = Total.of(found()[0])
    assert (total.nats, total.size, total.tokens) == (13.0, 9, 5)
    assert (total.again, total.failed, total.judged, total.right) == (1, 1, 1, 1)
    assert total.accuracy == 1.0
    assert total.bits_per_byte == pytest.approx(13.0 / math.log(2) / 9)
    nothing = Total.of([])
    assert nothing.bits_per_byte is None and nothing.accuracy is None


def test_what_is_asked_for_reaches_the_runtime() -> None:
    items, fake = found(ScoreOptions(raw=True, end=True, how=Choosing.CONSTRAINED))
    assert [call.get("raw") for call in fake.asked] == [True] * 4
    assert [call.get("end") for call in fake.asked] == [True, True, None, None]
    assert items[3] == Likelihood("q", chosen=1, correct=True)


def test_it_stops_when_it_is_told_to() -> None:
    with pytest.raises(Cancelled):
        found(cancel=lambda: True)
