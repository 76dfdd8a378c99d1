"""What can be shown, as plain values: text with marks, panes, tables, bars, and how they stand.

Pure: verbs build these; `plain` and `drawing` turn them into characters. No value here holds a
style or an escape sequence, and no text in it has to be safe: both renderers sanitise.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from capt_local.report.sanitise import visible, visible_line


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


_WIDTH = 100
_BAR = 20


def plain(view: View) -> list[str]:
    """The lines of a view; what is marked stands in [brackets]."""
    if isinstance(view, Prose):
        words = " ".join(_marked(view.line).split())
        return textwrap.wrap(words, _WIDTH, break_long_words=False, break_on_hyphens=False)
    if isinstance(view, Pane):
        return _pane(view)
    if isinstance(view, Table):
        return _titled(view.title, _columns(view))
    if isinstance(view, Bars):
        return _titled(view.title, _bars(view))
    return [*plain(view.left), "", *plain(view.right)]


def cells(text: str) -> int:
    """Columns that a text takes on a terminal: wide characters two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def filled(share: float, width: int) -> int:
    """How many of `width` cells a bar fills; what would read as 1 % is seen."""
    return max(round(share * width), 1 if share >= 0.005 else 0)


def _marked(line: Line) -> str:
    # A mark that crosses a line end would look like an open bracket.
    return "".join(
        "\n".join(f"[{part}]" if part else "" for part in visible(span.text).split("\n"))
        if span.marked
        else visible(span.text)
        for span in tidy(line)
    )


def _pane(pane: Pane) -> list[str]:
    foot = [f"  ({visible_line(pane.foot)})"] if pane.foot else []
    body = [f"  {line}".rstrip() for line in _marked(pane.body).split("\n")]
    return [f"{visible_line(pane.title)}:", *body, *foot]


def _titled(title: str, lines: list[str]) -> list[str]:
    return [visible_line(title), *(f"  {line}" for line in lines)] if title else lines


def _columns(table: Table) -> list[str]:
    rows = [*([table.headings] if table.headings else []), *table.rows]
    shown = [[visible_line(cell) for cell in row] for row in rows]
    widths = [max(cells(row[i]) for row in shown) for i in range(len(shown[0]))] if shown else []
    return [_aligned(row, widths, table.right) for row in shown]


def _aligned(row: Sequence[str], widths: Sequence[int], right: Sequence[int]) -> str:
    parts = []
    for i, cell in enumerate(row):
        gap = " " * (widths[i] - cells(cell))
        parts.append(gap + cell if i in right else cell + gap)
    return "  ".join(parts).rstrip()


def _bars(bars: Bars) -> list[str]:
    width = max((cells(visible_line(name)) for name, _ in bars.rows), default=0)
    return [
        f"{visible_line(name):<{width}}  {100 * share:3.0f} %  {'#' * filled(share, _BAR)}".rstrip()
        for name, share in bars.rows
    ]
