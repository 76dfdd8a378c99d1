"""Answers written by hand, for the views that tell what the expert changed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from capt_local.decoding.options import Choice, FinishReason, Step
from capt_local.report.json import Answer, Timings


def step(
    index: int,
    piece: bytes,
    *,
    instead: bytes | None = None,
    logp: float = -0.5,
    target_logp: float = -2.0,
    contrast: float = 1.5,
    finish: FinishReason | None = None,
) -> Step:
    """A step; `instead` is what the target alone would have said, if that was another token."""
    token = 10 + index
    own = Choice(token, piece, target_logp)
    other = Choice(1000 + index, instead, -0.25) if instead is not None else own
    return Step(
        index=index,
        token=token,
        piece_bytes=piece,
        logp=logp,
        target_logp=target_logp,
        target_rank=0 if instead is None else 3,
        target_choice=other,
        contrast=contrast,
        top=(Choice(token, piece, logp), Choice(7, b"\xc2", -3.0)),
        target_top=(other,),
        expert_top=(Choice(3, piece, -0.1),),
        base_top=(Choice(4, b"x", -0.2),),
        finish=finish,
    )


WORDS = [b"The", b" patient", b" denies", b" chest", b" pain", b",", b" fever", b" and", b" cough"]


def full_step(index: int, piece: bytes, *, instead: bytes | None = None, contrast: float) -> Step:
    """A step with three candidates of each model."""
    made = step(index, piece, instead=instead, contrast=contrast)
    others = [Choice(5000 + i, word, -1.5 - i) for i, word in enumerate(WORDS[:2])]
    return replace(
        made,
        expert_logp=-1.0,
        base_logp=-1.0 - contrast,
        top=(made.top[0], *others),
        target_top=(made.target_choice, *others),
        expert_top=(Choice(3, piece, -1.0), *others),
        base_top=(Choice(4, b"x", -0.2), *others),
    )


def an_answer(
    pieces: Iterable[tuple[bytes, bytes | None, float]], finish: FinishReason = FinishReason.STOP
) -> Answer:
    """An answer of (piece, what the target would have said or None, contrast)."""
    steps = [
        full_step(i, piece, instead=instead, contrast=contrast)
        for i, (piece, instead, contrast) in enumerate(pieces)
    ]
    if steps:
        steps[-1] = replace(steps[-1], finish=finish)
    return Answer(
        steps=steps,
        text=b"".join(each.piece_bytes for each in steps),
        finish=finish,
        model="demo",
        prompt_tokens={"target": 10, "expert": 12, "base": 12},
        context_limit=512,
        weights=(((1.0, 0.5, 0.5), 0.25), ((1.0, 1.0, 1.0), 0.75)),
        timings=Timings(0.5, 0.25, 1.5),
        provenance={
            "versions": {"capt_local": "0"},
            "method": "capt",
            "models": {"target": {"sha256": "ab" * 32, "quantization": "Q4_K"}},
            "parameters": {"combine": {"grid": [0.0, 0.5, 1.0]}},
        },
        created=1_700_000_000,
        id="capt-1",
    )


def long_answer(count: int, *, every: int = 3) -> Answer:
    """An answer of so many tokens; every third is changed, contrasts swing beyond the scale."""
    return an_answer(
        (
            WORDS[i % len(WORDS)] if i else b"The",
            (b" other" if i % every == 0 else None),
            6 * math.sin(i / 5),
        )
        for i in range(count)
    )
