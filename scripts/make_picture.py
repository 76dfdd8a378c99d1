"""Plays the demo and draws it as docs/demo.svg, the picture of the README.

    python -m scripts.make_picture [-m BUNDLE] [-n 32] [-o docs/demo.svg]

Without -m it takes the demo bundle. What is drawn is what the demo showed in this run, speeds
included. The file loads nothing: no web font, no link; the reader's own monospaced font is used,
and the place of each stretch of text is fixed.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from rich.terminal_theme import TerminalTheme

from capt_local.cli.demo import play
from capt_local.cli.options import CombineFlags, ModelFlags, SampleFlags
from capt_local.report.drawing import console_for, renderable
from capt_local.report.terminal import Screen
from capt_local.report.views import Look, View

COLUMNS = 108
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
<title>capt-local demo: the target alone beside the three models together</title>
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


def picture(views: list[View], columns: int = COLUMNS) -> str:
    """Views as an SVG that stands by itself.

    Raises:
        ValueError: it would refer to something outside.
    """
    console = console_for(Look(columns, colour=True), record=True)
    for i, view in enumerate(views):
        if i:
            console.print()
        console.print(renderable(view, console))
    svg = console.export_svg(
        title="capt-local demo", theme=THEME, code_format=SVG, unique_id="capt"
    )
    svg = "".join(f"{line.rstrip()}\n" for line in svg.splitlines() if line.strip())
    if refers_outside(svg):
        raise ValueError("the picture refers to something outside")
    return svg


def refers_outside(svg: str) -> bool:
    """Whether a tag or the style sheet does so; texts may say what they like."""
    style = svg[svg.index("<style>") : svg.index("</style>")]
    return any(OUTSIDE.search(part) for part in [style, *re.findall("<[^>]+>", svg)])


def main() -> int:
    """Plays, draws and writes; returns the exit code of the demo."""
    parser = argparse.ArgumentParser(description="Draw the demo as a picture.")
    parser.add_argument("-m", "--bundle", help="id, folder or bundle.toml (default: demo)")
    for role in ("target", "expert", "base"):
        parser.add_argument(f"--{role}", type=Path, help="a GGUF, for no bundle")
    parser.add_argument("-n", "--max-tokens", type=int)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/demo.svg"))
    asked = parser.parse_args()
    screen = Recorder()
    model = ModelFlags(
        bundle=asked.bundle,
        target=asked.target,
        expert=asked.expert and [asked.expert],
        base=asked.base and [asked.base],
        threads=asked.threads,
    )
    sample = SampleFlags(max_tokens=asked.max_tokens)
    code = play(screen, model, CombineFlags(), sample)
    if code == 0:
        asked.output.write_text(picture(screen.views), "utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
