"""Makes a report of the demo models and takes docs/report.png of it, the picture of the README.

    python -m scripts.make_screenshot [-o docs/report.png] [--dark]

Needs the extras `demo` and `browser`, and a Chromium on the machine. The note is the fictitious one
of the demo.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from capt_local.cli.app import run
from capt_local.cli.demo import QUESTION, demo_note

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = {"width": 1280, "height": 900}
BELOW = 20  # pixels of paper below the last thing in the picture


def browser_path() -> str | None:
    """A Chromium that is on this machine; none is ever fetched."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def browser_flags() -> list[str]:
    """Root has no sandbox; everyone else does."""
    return ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []


def shoot(page: Any, output: Path) -> None:
    """Takes the picture from the top of the report to the end of the answer."""
    end = page.locator("section.answer").bounding_box()
    if end is None:
        raise ValueError("the report has no answer")
    height = end["y"] + end["height"] + BELOW
    clip = {"x": 0, "y": 0, "width": SIZE["width"], "height": height}
    page.screenshot(path=output, clip=clip, full_page=True)


def main() -> int:
    """Writes the report and its picture; returns an exit code."""
    parser = argparse.ArgumentParser(description="Take a picture of a report.")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/report.png"))
    parser.add_argument("--dark", action="store_true")
    asked = parser.parse_args()
    if (path := browser_path()) is None:
        sys.exit("There is no Chromium on this machine.")
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.html"
        prompt = Path(folder) / "note.txt"
        prompt.write_text(f"{demo_note()}\n\n{QUESTION}", "utf-8")
        flags = ("-f", str(prompt), "-n", "128", "-t", "1", "--html", str(report))
        if code := run(["generate", *flags]):
            return code
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=path, args=browser_flags())
            page = browser.new_page(
                viewport=SIZE,
                device_scale_factor=1.5,
                color_scheme="dark" if asked.dark else "light",
            )
            page.goto(report.as_uri())
            shoot(page, asked.output)
            browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
