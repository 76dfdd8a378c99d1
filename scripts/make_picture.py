"""Draws the pictures of README and docs: terminals as SVG, pages in a browser as PNG.

    python -m scripts.make_picture demo [-m BUNDLE] [-o docs/demo.svg]
    python -m scripts.make_picture chat [-m BUNDLE] [-o docs/chat.svg]
    python -m scripts.make_picture report [-m BUNDLE] [-o docs/report.png] [--dark]
    python -m scripts.make_picture page ADDRESS [-o docs/serve.png]  # as serve prints it

What is drawn is what the program showed in this run, speeds included. demo and chat run in a
pseudo-terminal, keys are sent to the chat, and a terminal emulator keeps the screen (extra `test`:
pexpect, pyte). The SVG loads nothing: no web font, no link; the reader's own monospaced font is
used, and the place of each stretch of text is fixed. report and page need the extras `demo` and
`browser`, and a Chromium on the machine. All notes are invented.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import pyte
import typer
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from capt_local.cli.app import run
from capt_local.cli.generate import QUESTION, demo_note
from capt_local.report.drawing import console_for
from capt_local.report.views import TerminalInfo
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


COLUMNS, ROWS = 104, 60
TASK = "Summarize the patient in one sentence."
NOTE = """\
CHIEF COMPLAINT: Left ankle pain.
HISTORY OF PRESENT ILLNESS: The patient is a 34-year-old man who twisted his left ankle while he was
playing soccer yesterday. He felt a pop and could not walk on it.
PAST MEDICAL HISTORY: Asthma.
PLAN: X-ray of the ankle, rest, ice and elevation."""
# What is typed in the chat, one line after the other.
KEYS = (f"{TASK}\n\n{NOTE}", "/why", "/regen alpha=0", "/context")
TITLES = {
    "demo": "the target alone beside the three models together",
    "chat": "an answer, what the expert changed in it, and the answer without it",
}
_LOADING = re.compile(r"^(loading|note:)")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = {"width": 1280, "height": 900}
BELOW = 20  # pixels of paper below the last thing in the picture

app = typer.Typer(help=__doc__)
Bundle = Annotated[str, typer.Option("--bundle", "-m", help="id, folder or bundle.toml")]
Output = Annotated[Path | None, typer.Option("--output", "-o")]


@app.command()
def demo(bundle: Bundle = "demo", output: Output = None) -> None:
    """Draws the demo."""
    terminal = Terminal(["demo", "-m", bundle], size=(ROWS, COLUMNS), timeout=600)
    with closing(terminal):
        if code := terminal.end():
            raise typer.Exit(code)
        write_picture("demo", terminal.screen, output)


@app.command()
def chat(bundle: Bundle = "demo", output: Output = None) -> None:
    """Draws a conversation."""
    flags = ["chat", "-t", "1", "-n", "48", "-m", bundle]
    terminal = Terminal(flags, size=(ROWS, COLUMNS), timeout=120)
    with closing(terminal):
        terminal.ready()
        for keys in KEYS:
            if "\n" in keys:
                terminal.paste(keys)
                last = keys.splitlines()[-1][-20:]
                terminal.wait(lambda last=last: last in terminal.at_cursor())
                terminal.say()
            else:
                terminal.say(keys)
        write_picture("chat", terminal.screen, output)


def write_picture(name: str, screen: pyte.HistoryScreen, output: Path | None) -> None:
    """Writes what a terminal shows to docs/NAME.svg, or elsewhere."""
    (output or Path("docs", f"{name}.svg")).write_text(picture(name, lines_of(screen)), "utf-8")


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


def picture(name: str, lines: list[Text]) -> str:
    """The lines of a terminal as an SVG that stands by itself.

    Raises:
        ValueError: it would refer to something outside.
    """
    console = console_for(TerminalInfo(COLUMNS, colour=True), record=True)
    for line in lines:
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
    form = SVG.replace("TITLE", f"capt-local {name}: {TITLES[name]}")
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


@app.command()
def report(
    bundle: Bundle = "demo", output: Output = Path("docs/report.png"), dark: bool = False
) -> None:
    """Takes the picture of a report, from its top to the end of the answer."""
    with tempfile.TemporaryDirectory() as folder:
        made, prompt = Path(folder) / "report.html", Path(folder) / "note.txt"
        prompt.write_text(f"{demo_note()}\n\n{QUESTION}", "utf-8")
        flags = ["-f", str(prompt), "-n", "128", "-t", "1", "-m", bundle, "--html", str(made)]
        if code := run(["generate", *flags]):
            raise typer.Exit(code)
        with page_at(made.as_uri(), SIZE, dark) as shown:
            end = shown.locator("section.answer").bounding_box()
            clip = {"x": 0, "y": 0, "width": SIZE["width"], "height": end["y"] + end["height"]}
            clip["height"] += BELOW
            shown.screenshot(path=output, clip=clip, full_page=True)


@app.command()
def page(address: str, output: Output = Path("docs/serve.png"), dark: bool = False) -> None:
    """Takes the picture of the server's page: an answer, the target's own, and one word open."""
    with page_at(address, {"width": 1360, "height": 920}, dark) as shown:
        shown.click("#example")
        shown.locator("#library label").last.click()
        shown.fill("#question", QUESTION)
        shown.check("#beside")
        shown.click("#write")
        shown.wait_for_selector("#stop", state="visible")
        shown.wait_for_selector("#stop", state="hidden", timeout=120_000)
        shown.locator("#strip .t.c").first.click()
        shown.evaluate("scrollTo(0, 0)")
        shown.wait_for_timeout(300)
        shown.screenshot(path=output)


@contextmanager
def page_at(address: str, size: dict[str, int], dark: bool) -> Iterator[Any]:
    """A page in a browser of this size."""
    with browser() as opened:
        shown = opened.new_page(
            viewport=size, device_scale_factor=1.5, color_scheme="dark" if dark else "light"
        )
        shown.goto(address)
        yield shown


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium that is on this machine; none is ever fetched."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise FileNotFoundError(f"there is no Chromium on this machine ({', '.join(BROWSERS)})")
    # Root has no sandbox; everyone else does.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=flags)
        yield opened
        opened.close()


if __name__ == "__main__":
    app()
