"""What the expert changed, as views: marked text, the largest shifts, the weights of alpha."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from capt_local.decode.step import Choice, Step
from capt_local.report.plain import cells
from capt_local.report.sanitise import Sanitiser, visible_line
from capt_local.report.view import Line, Span, Table

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

    Ordered by logp - target_logp of the token that was said (nats), largest first. The same
    change of the same token, made again and again, is there once.
    """
    changed = sorted(
        (step for step in steps if step.changed), key=lambda step: step.target_logp - step.logp
    )
    once: dict[tuple[int, int], Step] = {}
    for step in changed:
        once.setdefault((step.target_choice.token, step.token), step)
    return list(once.values())[:count]


def shift_table(steps: Sequence[Step], count: int = 10, *, proxies: bool = False) -> Table:
    """A table of the largest shifts; without rows when nothing changed.

    Columns: the step, what the target alone would have said and its probability for it, what was
    said, its probability under the target and under the combination, and the contrast in nats.
    With `proxies`, also its probability under expert and base, where that is known.
    """
    largest = largest_shifts(steps, count)
    proxies = proxies and any(step.expert_logp is not None for step in largest)
    rows = tuple(_row(step, proxies) for step in largest)
    # Short names where there are many, so that the words beside them keep their room.
    many = ("target", "expert", "base", "all", "nats")
    figures = many if proxies else ("p target", "p all", "contrast")
    heading = ("step", "target alone", "p", "was said", *figures)
    return Table("Largest shifts", rows, heading, right=(0, 2, *range(4, len(heading))))


def _row(step: Step, proxies: bool) -> tuple[str, ...]:
    both = (step.expert_logp, step.base_logp) if proxies else ()
    return (
        str(step.index + 1),
        quoted(step.target_choice.piece),
        probability(step.target_choice.logp),
        quoted(said(step)),
        probability(step.target_logp),
        *(probability(math.nan if logp is None else logp) for logp in both),
        probability(step.logp),
        nats(step.contrast),
    )


def nats(value: float | None) -> str:
    """A contrast as a person reads it: signed, two digits; None: nobody was asked for it."""
    if value is None:
        return "not asked"
    return "?" if math.isnan(value) else f"{value:+.2f}"


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
    text = visible_line(piece.decode("utf-8", "backslashreplace"))
    return f'"{clipped(text, width - 2)}"'


def probability(logp: float) -> str:
    """A natural log-probability as a probability that a person can read."""
    if math.isnan(logp):
        return "?"
    value = math.exp(min(logp, 0.0))
    return f"{value:.3f}" if value >= 0.0005 else f"{value:.0e}"


def clipped(text: str, width: int) -> str:
    """A text for a table cell; what does not fit is replaced by an ellipsis."""
    used = kept = 0
    for place, character in enumerate(text, 1):  # a text may be a long note: one pass
        used += cells(character)
        if used > width:
            return text[:kept] + "…"
        if used < width:
            kept = place
    return text
