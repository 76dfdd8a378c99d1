"""What can be shown, as plain values: text with marks, panes, tables, and how they stand.

Pure: verbs build these; `plain` and `drawing` turn them into characters. No value here holds a
style or an escape sequence, and no text in it has to be safe: both renderers sanitise.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from capt_local.report.sanitise import visible, visible_line

_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Look:
    """What a terminal can show; bold and underline are always there."""

    width: int = 80
    colour: bool = False
    encoding: str = "utf-8"  # decides about lines and blocks


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text, marked (bold and underlined) or not."""

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
    """A text in a frame, with a title above and a line about it below; its line ends stay."""

    title: str
    body: Line
    foot: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, of the same length each."""

    title: str  # above it; may be empty
    rows: tuple[tuple[str, ...], ...]
    headings: tuple[str, ...] = ()  # of the columns; empty for names and values
    right: tuple[int, ...] = ()  # columns that are aligned at their right end


@dataclass(frozen=True, slots=True)
class Beside:
    """Two texts that stand side by side where there is space, else one under the other."""

    left: Pane
    right: Pane


View = Prose | Pane | Table | Beside


def tidy(line: Iterable[Span]) -> Line:
    """The same text with neighbouring marks joined and the white space around them left out."""
    joined: list[Span] = []
    for span in line:
        if joined and joined[-1].marked == span.marked:
            joined[-1] = Span(joined[-1].text + span.text, span.marked)
        else:
            joined.append(span)
    parts: list[Span] = []
    for span in joined:
        core = span.text.strip()
        if span.marked and core:
            before, after = span.text.split(core, 1)
            parts += [Span(before), Span(core, True), Span(after)]
        else:  # a changed line end or blank is still a change
            parts.append(span)
    return tuple(part for part in parts if part.text)


def plain(view: View) -> list[str]:
    """The lines of a view; what is marked stands in [brackets]."""
    match view:
        case Prose():
            words = " ".join(_marked(view.line).split())
            return textwrap.wrap(words, _WIDTH, break_long_words=False, break_on_hyphens=False)
        case Pane():
            foot = [f"  ({visible_line(view.foot)})"] if view.foot else []
            body = [f"  {line}".rstrip() for line in _marked(view.body).split("\n")]
            return [f"{visible_line(view.title)}:", *body, *foot]
        case Table():
            title = [visible_line(view.title)] if view.title else []
            return [*title, *(f"{'  ' * bool(title)}{line}" for line in _columns(view))]
        case Beside():
            return [*plain(view.left), "", *plain(view.right)]


def cells(text: str) -> int:
    """Columns that a text takes on a terminal: wide characters two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _marked(line: Line) -> str:
    # A mark that crosses a line end would look like an open bracket.
    return "".join(
        "\n".join(f"[{part}]" if part else "" for part in visible(span.text).split("\n"))
        if span.marked
        else visible(span.text)
        for span in tidy(line)
    )


def _columns(table: Table) -> list[str]:
    rows = [*([table.headings] if table.headings else []), *table.rows]
    shown = [[visible_line(cell) for cell in row] for row in rows]
    widths = [max(map(cells, column)) for column in zip(*shown, strict=True)]
    lines = []
    for row in shown:
        gaps = [" " * (width - cells(cell)) for cell, width in zip(row, widths, strict=True)]
        parts = (
            gap + cell if place in table.right else cell + gap
            for place, (cell, gap) in enumerate(zip(row, gaps, strict=True))
        )
        lines.append("  ".join(parts).rstrip())
    return lines
