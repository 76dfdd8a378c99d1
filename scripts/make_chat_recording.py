"""Plays a chat in a real terminal and draws what was seen as docs/chat.svg.

    python -m scripts.make_chat_recording [-m BUNDLE] [-o docs/chat.svg]

The program runs in a pseudo-terminal, the keys are sent to it, and a terminal emulator keeps the
screen; what is drawn is that screen, with nothing added. Needs the `test` extra (pexpect, pyte).
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from pathlib import Path

import pyte
from rich.text import Text

from capt_local.report.drawing import console_for
from capt_local.report.views import Look
from scripts.make_picture import SVG, THEME, refers_outside
from tests.cli.terminal import PROMPT, Terminal

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


def picture(lines: list[Text]) -> str:
    """Lines of a terminal as an SVG that stands by itself.

    Raises:
        ValueError: it would refer to something outside.
    """
    console = console_for(Look(COLUMNS, colour=True), record=True)
    for line in lines:
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
    template = SVG.replace(
        "capt-local demo: the target alone beside the three models together",
        "capt-local chat: an answer, what the expert changed in it, and the answer without it",
    )
    svg = console.export_svg(
        title="capt-local chat", theme=THEME, code_format=template, unique_id="chat"
    )
    svg = "".join(f"{line.rstrip()}\n" for line in svg.splitlines() if line.strip())
    if refers_outside(svg):
        raise ValueError("the picture refers to something outside")
    return svg


def main() -> int:
    """Plays, draws and writes."""
    parser = argparse.ArgumentParser(description="Record a chat as a picture.")
    parser.add_argument("-m", "--bundle", help="id, folder or bundle.toml (default: demo)")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/chat.svg"))
    asked = parser.parse_args()
    flags = ["-m", asked.bundle] if asked.bundle else []
    asked.output.write_text(picture(played(flags)), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
