"""Turns written by hand."""

from __future__ import annotations

from capt_local.chat.conversation import Turn
from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.step import FinishReason
from capt_local.report.json import Answer
from tests.report.steps import step


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
