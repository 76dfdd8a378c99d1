"""Views as Rich draws them on a terminal. The only file that knows Rich; it writes nothing.

Every text becomes a `Text` behind the sanitiser: Rich's markup, emoji codes and highlighting are
for strings, and no string reaches it. Colour only repeats what bold and underline say.
"""

from __future__ import annotations

import io

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid
from rich.text import Text

from capt_local.report.views import (
    Beside,
    Line,
    Pane,
    Prose,
    Table,
    TerminalInfo,
    View,
    tidy,
    visible,
    visible_line,
)

MARK = "bold underline magenta"
_HEAD = "bold"
_FRAME = "cyan"
_WIDEST = 140
_SIDE_BY_SIDE = 100
_NARROW = 80
_PROGRESS = 60


class _Drawing(io.StringIO):
    """The file that Rich writes to; its encoding decides which line characters Rich uses."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


def console_for(look: TerminalInfo, *, record: bool = False) -> Console:
    """A console that draws into memory, independent of the environment."""
    return Console(
        file=_Drawing(look.encoding),
        width=min(look.width, _WIDEST),
        height=100,
        force_terminal=True,
        force_jupyter=False,
        color_system="standard",
        no_color=not look.colour,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
        record=record,
        _environ={},
    )


def drawn(view: View, look: TerminalInfo) -> str:
    """A view as text with styles, ending with a newline."""
    console = console_for(look)
    return _printed(console, renderable(view, console))


def _printed(console: Console, what: RenderableType) -> str:
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def progress_line(label: str, fraction: float | None, look: TerminalInfo) -> str:
    """One line about how far something is, `progress_width(look)` columns wide."""
    line = Grid.grid(expand=True, padding=(0, 1, 0, 0))
    line.add_column(no_wrap=True, overflow="ellipsis")
    line.add_column(ratio=1)
    line.add_column(justify="right", no_wrap=True, width=5)
    bar: RenderableType = Text()
    percent = ""
    if fraction is not None:
        bar = ProgressBar(1.0, fraction, complete_style=_FRAME, finished_style=_FRAME)
        percent = f"{100 * fraction:.0f} %"
    line.add_row(_cell(label), bar, Text(percent))
    console = console_for(TerminalInfo(progress_width(look), look.colour, look.encoding))
    return _printed(console, line).rstrip("\n")


def progress_width(look: TerminalInfo) -> int:
    """Columns of a progress line: one less than the terminal, so that it never wraps."""
    return max(min(look.width - 1, _PROGRESS), 1)


def renderable(view: View, console: Console) -> RenderableType:
    """What Rich prints for a view."""
    match view:
        case Prose():
            text = _text(view.line)
            text.stylize(_HEAD if view.strong else "")
            return text
        case Pane():
            return _panel(view)
        case Table():
            body = _table(view, console.width)
            return Group(_cell(view.title, _HEAD), body) if view.title else body
        case Beside():
            return _beside(view, console)


def _text(line: Line) -> Text:
    text = Text(overflow="fold")
    for span in tidy(line):
        text.append(visible(span.text), MARK if span.marked else None)
    return text


def _cell(text: str, style: str = "") -> Text:
    return Text(visible_line(text), style, overflow="fold")


def _panel(pane: Pane, height: int | None = None) -> Panel:
    return Panel(
        _text(pane.body),
        box=box.ROUNDED,
        title=_cell(pane.title, _HEAD),
        title_align="left",
        subtitle=_cell(pane.foot) if pane.foot else None,
        subtitle_align="left",
        border_style=_FRAME,
        height=height,
    )


def _table(table: Table, width: int) -> Grid:
    grid = Grid(
        box=box.SIMPLE_HEAD if table.headings else None,
        show_header=bool(table.headings),
        border_style=_FRAME,
        show_edge=False,
        collapse_padding=bool(table.headings) and width <= _NARROW,
    )
    for i in range(len(table.headings or (table.rows or ((),))[0])):
        heading = _cell(table.headings[i], _HEAD) if table.headings else Text()
        # A number that is wrapped could be misread.
        is_right = i in table.right
        grid.add_column(heading, justify="right" if is_right else "left", no_wrap=is_right)
    for row in table.rows:
        grid.add_row(*(_cell(cell) for cell in row))
    return grid


def _beside(both: Beside, console: Console) -> RenderableType:
    panes, width = (both.left, both.right), console.width
    if width < _SIDE_BY_SIDE:
        return Group(*map(_panel, panes))
    half = (width - 1) // 2
    options = console.options.update(width=half)
    height = max(len(console.render_lines(_panel(pane), options)) for pane in panes)
    row = Grid.grid(padding=(0, 1, 0, 0), pad_edge=False)
    row.add_column(width=half)
    row.add_column(width=half)
    row.add_row(*(_panel(pane, height) for pane in panes))
    return row
