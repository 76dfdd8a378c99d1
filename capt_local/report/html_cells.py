"""An answer as cells that can be shown: whole characters, with the steps that made them."""

from __future__ import annotations

import codecs
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from capt_local.decode.step import Choice, FinishReason, Step
from capt_local.report.json import Answer
from capt_local.report.sanitise import visible, visible_line
from capt_local.report.steps import said

LIMIT = 4.0
"""Where the scale of the contrast ends on both sides, in nats: the same on every page."""
LEVELS = 8
"""Steps of the scale on each side of 0."""
TOP = 3
"""How many candidates of each model the page tells."""
_JOINER = "\u200d"


@dataclass(frozen=True, slots=True)
class Cell:
    """A stretch of text that belongs together, and what is known about it.

    Tokens that hold parts of one character, or of one emoji, are one cell.

    Attributes:
        number: from 0.
        lead: white space in front, which is not coloured.
        text: what is; without anything that a reader's machine would obey.
        trail: white space behind.
        steps: that made the text, in order.
        name: what the cell is for those who cannot see it, where its text says nothing.
    """

    number: int
    lead: str
    text: str
    trail: str
    steps: tuple[Step, ...]
    name: str = ""

    @property
    def changed(self) -> bool:
        """Whether any of its tokens was."""
        return any(step.changed for step in self.steps)

    @property
    def level(self) -> int:
        """Of the largest contrast, from -LEVELS to LEVELS."""
        return level(max(contrasts(self.steps).values(), key=abs, default=0.0))


def contrasts(steps: Sequence[Step]) -> dict[int, float]:
    """Those that are known, by their places among the steps."""
    told = ((place, step.contrast) for place, step in enumerate(steps))
    return {place: x for place, x in told if x is not None and not math.isnan(x)}


def level(contrast: float | None) -> int:
    """A contrast in nats as a step of the scale; beyond its ends is at its ends."""
    if contrast is None or math.isnan(contrast):
        return 0
    return round(min(max(contrast / LIMIT, -1.0), 1.0) * LEVELS)


def cells(answer: Answer) -> tuple[Cell, ...]:
    """The cells of an answer; their texts joined are its text, made visible."""
    groups: list[tuple[str, list[Step]]] = []
    for text, steps in _characters(answer):
        if groups and text and _goes_on(groups[-1][0], text):
            groups[-1] = (groups[-1][0] + text, groups[-1][1] + steps)
        else:
            groups.append((text, steps))
    return tuple(_cell(number, text, steps) for number, (text, steps) in enumerate(groups))


def _characters(answer: Answer) -> Iterator[tuple[str, list[Step]]]:
    """Text that ends at the end of a character, with its steps."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, steps = "", list[Step]()
    for step in answer.steps:
        text += decoder.decode(step.piece)
        steps.append(step)
        if text and not decoder.getstate()[0]:
            yield text, steps
            text, steps = "", []
    # What an interruption held back belongs to no step.
    rest = answer.text[sum(len(step.piece) for step in answer.steps) :]
    text += decoder.decode(rest, True)
    if text or steps:
        yield text, steps


def _goes_on(before: str, text: str) -> bool:
    """Whether a text begins within what a reader sees as one sign."""
    first = text[0]
    if before.endswith(_JOINER) or first == _JOINER:
        return True
    if "\U0001f1e6" <= first <= "\U0001f1ff":  # a flag is two letters
        letters = len(before) - len(before.rstrip("".join(map(chr, range(0x1F1E6, 0x1F200)))))
        return letters % 2 == 1
    return unicodedata.category(first).startswith("M") or "\U0001f3fb" <= first <= "\U0001f3ff"


def _cell(number: int, text: str, steps: list[Step]) -> Cell:
    shown = visible(text)
    core = shown.strip(" \t\n")
    if core:
        start = shown.index(core)
        end = start + len(core)
        return Cell(number, shown[:start], core, shown[end:], tuple(steps))
    name = "white space"
    if "\n" in shown:
        name = "line break"
    elif not shown:
        name = "the end of the answer" if _ended(steps) else "held back"
    return Cell(number, "", shown, "", tuple(steps), name)


def _ended(steps: Sequence[Step]) -> bool:
    """Whether the steps are a token that ends an answer, and not part of a stop string."""
    return len(steps) == 1 and (steps[0].finish is FinishReason.STOP or not said(steps[0]))


def details(found: Sequence[Cell]) -> dict[str, list[object]]:
    """What the page tells about each step, as a JSON value; every piece is there once.

    Returns:
        pieces: texts; steps: per step the number of its cell, the piece that was said, logp,
        target_logp, rank under the target, the target's own piece and its logp, contrast,
        expert_logp, base_logp, changed and drawn (0 or 1), and four lists of piece, logp, piece,
        logp, ...: of target, expert, base and all together. Numbers that are not finite are null.
    """
    pieces: dict[bytes, int] = {}

    def place(piece: bytes) -> int:
        return pieces.setdefault(piece, len(pieces))

    def top(choices: Sequence[Choice]) -> list[object]:
        return [x for c in choices[:TOP] for x in (place(c.piece), short(c.logp))]

    steps: list[object] = [
        [
            cell.number,
            place(said(step)),
            short(step.logp),
            short(step.target_logp),
            step.target_rank,
            place(step.target_choice.piece),
            short(step.target_choice.logp),
            short(step.contrast),
            short(step.expert_logp),
            short(step.base_logp),
            int(step.changed),
            int(step.likeliest is not None),
            *map(top, (step.target_top, step.expert_top, step.base_top, step.top)),
        ]
        for cell in found
        for step in cell.steps
    ]
    return {"pieces": [spelled(piece) for piece in pieces], "steps": steps}


def spelled(piece: bytes) -> str:
    """A token on one line: white space and bytes that are no character are spelled out."""
    return visible_line(piece.decode("utf-8", "backslashreplace"))


def short(value: float | None) -> float | None:
    """A number with as many digits as a page needs; None where there is none."""
    return round(value, 3) if value is not None and math.isfinite(value) else None
