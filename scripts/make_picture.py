"""Draws the pictures of the README: the demo as docs/demo.svg, and a chat as docs/chat.svg.

    python -m scripts.make_picture demo [-m BUNDLE] [-o docs/demo.svg]
    python -m scripts.make_picture chat [-m BUNDLE] [-o docs/chat.svg]

What is drawn is what the program showed in this run, speeds included. The chat runs in a
pseudo-terminal, the keys are sent to it, and a terminal emulator keeps the screen (extra `test`:
pexpect, pyte). The file loads nothing: no web font, no link; the reader's own monospaced font is
used, and the place of each stretch of text is fixed.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from pathlib import Path

import pyte
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from capt_local.cli.generate import play
from capt_local.cli.options import CombineFlags, ModelFlags, SampleFlags
from capt_local.report.drawing import console_for, renderable
from capt_local.report.terminal import Screen
from capt_local.report.views import Look, View
from tests.cli.terminal import PROMPT, Terminal

THEME = TerminalTheme(
    (16, 22, 30),
    (214, 220, 228),
    [
        (16, 22, 30), (240, 120, 110), (120, 200, 140), (230, 190, 100),
        (110, 170, 240), (255, 176, 84), (96, 158, 190), (214, 220, 228),
    ],
)  # fmt: skip
SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>TITLE</title>
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; white-space: pre;
}}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
# What would make a reader's machine fetch something, or go somewhere.
OUTSIDE = re.compile(r"""@font-face|@import|<image|<script|href\s*=|url\(\s*["']?(?!#)""")


class Recorder(Screen):
    """Keeps the views of a command instead of writing them."""

    def __init__(self) -> None:
        super().__init__(sys.stdout, sys.stderr)
        self.views: list[View] = []

    def show(self, *views: View) -> None:
        """Keeps them."""
        self.views += views


def picture(name: str, title: str, console: Console) -> str:
    """What a recording console has drawn, as an SVG that stands by itself.

    Raises:
        ValueError: it would refer to something outside.
    """
    form = SVG.replace("TITLE", title)
    svg = console.export_svg(title=f"capt-local {name}", theme=THEME, code_format=form,
                             unique_id=name)  # fmt: skip
    svg = "".join(f"{line.rstrip()}\n" for line in svg.splitlines() if line.strip())
    if refers_outside(svg):
        raise ValueError("the picture refers to something outside")
    return svg


def refers_outside(svg: str) -> bool:
    """Whether a tag or the style sheet does so; texts may say what they like."""
    style = svg[svg.index("<style>") : svg.index("</style>")]
    return any(OUTSIDE.search(part) for part in [style, *re.findall("<[^>]+>", svg)])


def demo_picture(views: list[View]) -> str:
    """The views of a demo."""
    console = console_for(Look(108, colour=True), record=True)
    for i, view in enumerate(views):
        if i:
            console.print()
        console.print(renderable(view, console))
    title = "capt-local demo: the target alone beside the three models together"
    return picture("demo", title, console)


# --- the chat -------------------------------------------------------------------------------------

COLUMNS, ROWS = 104, 60
TASK = "Summarize the patient in one sentence."
NOTE = """\
CHIEF COMPLAINT: Left ankle pain.
HISTORY OF PRESENT ILLNESS: The patient is a 34-year-old man who twisted his left ankle while he was
playing soccer yesterday. He felt a pop and could not walk on it.
PAST MEDICAL HISTORY: Asthma.
PLAN: X-ray of the ankle, rest, ice and elevation."""
# What is typed, one line after the other. The note is invented.
KEYS = (f"{TASK}\n\n{NOTE}", "/why", "/regen alpha=0", "/context")
_LOADING = re.compile(r"^(loading|note:)")


def played(flags: list[str]) -> list[Text]:
    """The lines of the terminal after a session, with their styles."""
    terminal = Terminal(
        ["chat", "-t", "1", "-n", "48", *flags], size=(ROWS, COLUMNS), environment={}, timeout=120
    )
    try:
        terminal.ready()
        for keys in KEYS:
            if "\n" in keys:
                terminal.paste(keys)
                last = keys.splitlines()[-1][-20:]
                terminal.wait(lambda last=last: last in terminal.at_cursor())
                terminal.say()
            else:
                terminal.say(keys)
        return lines_of(terminal.screen)
    finally:
        terminal.close()


def lines_of(screen: pyte.HistoryScreen) -> list[Text]:
    """All lines of a screen, those that scrolled away included, up to the last prompt."""
    rows = [*screen.history.top, *(screen.buffer[y] for y in range(screen.lines))]
    lines = [_line(row, screen.columns) for row in rows]
    lines = [line for line in lines if not _LOADING.match(line.plain)]
    while lines and lines[-1].plain in ("", PROMPT):
        lines.pop()
    return lines


def _line(row: dict[int, pyte.screens.Char], columns: int) -> Text:
    text = Text()
    cells = [row[x] for x in range(columns)]
    for style, group in itertools.groupby(cells, _style):
        text.append("".join(cell.data for cell in group), style)
    text.rstrip()
    return text


def _style(cell: pyte.screens.Char) -> str:
    parts = [
        "bold" if cell.bold else "",
        "underline" if cell.underscore else "",
        "reverse" if cell.reverse else "",
        "" if cell.fg == "default" else {"brown": "yellow"}.get(cell.fg, cell.fg),
    ]
    return " ".join(part for part in parts if part)


def chat_picture(lines: list[Text]) -> str:
    """The lines of a terminal."""
    console = console_for(Look(COLUMNS, colour=True), record=True)
    for line in lines:
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
    title = "capt-local chat: an answer, what the expert changed in it, and the answer without it"
    return picture("chat", title, console)


def main() -> int:
    """Plays, draws and writes; returns the exit code of what was played."""
    parser = argparse.ArgumentParser(description="Draw the demo or a chat as a picture.")
    parser.add_argument("what", choices=("demo", "chat"))
    parser.add_argument("-m", "--bundle", help="id, folder or bundle.toml (default: demo)")
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    output = asked.output or Path("docs", f"{asked.what}.svg")
    if asked.what == "chat":
        output.write_text(chat_picture(played(["-m", asked.bundle or "demo"])), "utf-8")
        return 0
    screen, model = Recorder(), ModelFlags(bundle=asked.bundle)
    code = play(screen, model, CombineFlags(), SampleFlags())
    if code == 0:
        output.write_text(demo_picture(screen.views), "utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
