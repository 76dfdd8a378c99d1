"""Views as plain lines: for files, pipes and terminals that can do nothing. ASCII of our own."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence

from capt_local.report.sanitise import visible, visible_line
from capt_local.report.view import Bars, Line, Pane, Prose, Table, View, tidy

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
