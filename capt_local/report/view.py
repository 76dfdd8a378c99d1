"""What can be shown, as plain values: text with marks, panes, tables, bars, and how they stand.

Pure: verbs build these; `plain` and `drawing` turn them into characters. No value here holds a
style or an escape sequence, and no text in it has to be safe: both renderers sanitise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Look:
    """What a terminal can show.

    Attributes:
        width: columns.
        colour: whether colours are wanted; bold and underline are always there.
        encoding: of the stream; decides about lines and blocks.
    """

    width: int = 80
    colour: bool = False
    encoding: str = "utf-8"


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text that is marked (bold and underlined) or not."""

    text: str
    marked: bool = False


Line = tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph of our own words, wrapped where it is shown."""

    line: Line
    strong: bool = False

    @classmethod
    def of(cls, text: str, *, strong: bool = False) -> Prose:
        """A paragraph without marks."""
        return cls((Span(text),), strong)


@dataclass(frozen=True, slots=True)
class Pane:
    """A text in a frame; its line ends are kept.

    Attributes:
        title: above it.
        body: the text.
        foot: about it, below; may be empty.
    """

    title: str
    body: Line
    foot: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells.

    Attributes:
        title: above it; may be empty.
        rows: of the same length each.
        headings: of the columns; empty for names and values.
        right: the columns that are aligned at their right end.
    """

    title: str
    rows: tuple[tuple[str, ...], ...]
    headings: tuple[str, ...] = ()
    right: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Bars:
    """Shares of a whole, as bars.

    Attributes:
        title: above them.
        rows: (name, share from 0 to 1) pairs.
    """

    title: str
    rows: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Beside:
    """Two views that stand side by side where there is room, else one under the other."""

    left: Pane | Table | Bars
    right: Pane | Table | Bars


View = Prose | Pane | Table | Bars | Beside


def tidy(line: Iterable[Span]) -> Line:
    """The same text with neighbouring marks joined and the white space around them left out."""
    joined: list[Span] = []
    for span in line:
        if joined and joined[-1].marked == span.marked:
            joined[-1] = Span(joined[-1].text + span.text, span.marked)
        else:
            joined.append(span)
    return tuple(part for span in joined for part in _trimmed(span) if part.text)


def _trimmed(span: Span) -> Line:
    core = span.text.strip()
    if not span.marked or not core:  # a changed line end or blank is still a change
        return (span,)
    start = span.text.index(core)
    end = start + len(core)
    return Span(span.text[:start]), Span(core, True), Span(span.text[end:])
