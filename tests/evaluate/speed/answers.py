"""Answers that took what a test says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from capt_local.errors import ContextOverflow
from capt_local.evaluate.speed.questions import Question
from capt_local.evaluate.speed.taken import Drafts, Taken
from capt_local.evaluate.speed.turns import Round, Turns


def taken(
    tokens: Sequence[int],
    rate: float = 10.0,
    *,
    logps: Sequence[float] = (),
    sizes: Mapping[str, Mapping[int, int]] | None = None,
    decoded: Mapping[str, int] | None = None,
    drafts: Drafts | None = None,
    inside: float | None = None,
) -> Taken:
    steps = max(len(tokens) - 1, 0)
    return Taken(
        prompt_tokens=100,
        prompt_seconds=0.5,
        tokens=tuple(tokens),
        seconds=steps / rate,
        logps=tuple(logps),
        inside=inside,
        sizes=sizes or {},
        decoded=decoded or {},
        drafts=drafts,
    )


def turns(**modes: Sequence[Taken]) -> Turns:
    """All modes on the same prompts."""
    count = len(next(iter(modes.values())))
    return Turns(
        [
            Round(n, Question(f"prompt {n}"), {name: each[n] for name, each in modes.items()})
            for n in range(count)
        ]
    )


class ScriptedMode:
    """Notes what it is asked in a common list; some prompts do not fit."""

    def __init__(self, name: str, asked: list[tuple[str, object]], too_long: str = "") -> None:
        self._name = name
        self._asked = asked
        self._too_long = too_long

    def answer(self, question: Question) -> Taken:
        if question.asked == self._too_long:
            raise ContextOverflow({"target": 9}, 8)
        self._asked.append((self._name, question.asked))
        return taken([1, 2, 3])
