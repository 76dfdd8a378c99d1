"""What the expert changed, as lines for a terminal.

Pure: steps in, lines with marks out. The screen turns marks into bold and underline, or into
brackets where neither works; colour is never needed to read it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence

from capt_local.decode.step import Choice, Step
from capt_local.report.sanitise import Sanitiser, visible
from capt_local.report.screen import Line, Span

_CELL = 26


def marked_text(steps: Iterable[Step]) -> Line:
    """The answer as spans, the tokens that the expert changed marked.

    A character may take several tokens, and a stop string may hold bytes back: text is marked
    when any token since the last text was changed.
    """
    sanitiser = Sanitiser()
    spans: list[Span] = []
    changed = False
    for step in steps:
        changed = changed or step.changed
        text = sanitiser.feed(step.piece)
        if text:
            spans.append(Span(text, changed))
            changed = False
    rest = sanitiser.flush()
    if rest:
        spans.append(Span(rest, changed))
    return tuple(spans)


def largest_shifts(steps: Iterable[Step], count: int = 10) -> list[Step]:
    """The changed steps in which the combination moved furthest from the target.

    Ordered by logp - target_logp of the token that was said (nats), largest first.
    """
    changed = [step for step in steps if step.changed]
    return sorted(changed, key=lambda step: step.target_logp - step.logp)[:count]


def shift_table(steps: Sequence[Step], count: int = 10) -> list[str]:
    """A table of the largest shifts, one line each, with a heading; empty when nothing changed.

    Columns: the step, what the target alone would have said and its probability for it, what was
    said, its probability under the target and under the combination, and the contrast in nats.
    """
    rows = [_row(step) for step in largest_shifts(steps, count)]
    if not rows:
        return []
    heading = ("step", "target alone", "p", "was said", "p target", "p all", "contrast")
    return _columns([heading, *rows], right=(0, 2, 4, 5, 6))


def _row(step: Step) -> tuple[str, ...]:
    return (
        str(step.index + 1),
        quoted(step.target_choice.piece),
        probability(step.target_choice.logp),
        quoted(said(step)),
        probability(step.target_logp),
        probability(step.logp),
        f"{step.contrast:+.2f}",
    )


def said(step: Step) -> bytes:
    """The bytes of the token that was chosen, also where a stop string held them back."""
    candidates: tuple[Choice, ...] = (*step.top, *step.target_top)
    for choice in candidates:
        if choice.token == step.token:
            return choice.piece
    return step.piece


def quoted(piece: bytes, width: int = _CELL) -> str:
    """A token in quotes, on one line: white space and undecodable bytes are spelled out."""
    if not piece:
        return "(end)"
    text = visible(piece.decode("utf-8", "backslashreplace"))
    text = text.replace("\n", "\\n").replace("\t", "\\t")
    return f'"{clipped(text, width - 2)}"'


def probability(logp: float) -> str:
    """A natural log-probability as a probability that a person can read."""
    if math.isnan(logp):
        return "?"
    value = math.exp(min(logp, 0.0))
    return f"{value:.3f}" if value >= 0.0005 else f"{value:.0e}"


def cells(text: str) -> int:
    """Columns that a text takes on a terminal: wide characters two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def clipped(text: str, width: int) -> str:
    """A text for a table cell; what does not fit is replaced by an ellipsis."""
    if cells(text) <= width:
        return text
    while cells(text) > width - 1:
        text = text[:-1]
    return text + "…"


def _columns(rows: Sequence[Sequence[str]], right: tuple[int, ...]) -> list[str]:
    widths = [max(cells(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        parts = []
        for i, cell in enumerate(row):
            gap = " " * (widths[i] - cells(cell))
            parts.append(gap + cell if i in right else cell + gap)
        lines.append("  ".join(parts).rstrip())
    return lines
