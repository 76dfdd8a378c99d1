"""Takes the pictures of the docs: of a report of the demo models, or of the page of a server.

    python -m scripts.make_screenshot [-o docs/report.png] [--dark]
    python -m scripts.make_screenshot -o docs/serve.png --page ADDRESS  # as serve prints it

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
from capt_local.cli.generate import QUESTION, demo_note

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


def shoot_page(page: Any, output: Path) -> None:
    """Takes the picture of the server's page: an answer, the target's own, and one word open."""
    page.set_viewport_size({"width": 1360, "height": 920})
    page.click("#example")
    page.locator("#library label").last.click()
    page.fill("#question", QUESTION)
    page.check("#beside")
    page.click("#write")
    page.wait_for_selector("#stop", state="visible")
    page.wait_for_selector("#stop", state="hidden", timeout=120_000)
    page.locator("#strip .t.c").first.click()
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(300)
    page.screenshot(path=output)


def main() -> int:
    """Writes the report and its picture; returns an exit code."""
    parser = argparse.ArgumentParser(description="Take a picture of a report.")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/report.png"))
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--page", help="the address of a server's page, with its key")
    asked = parser.parse_args()
    if (path := browser_path()) is None:
        sys.exit("There is no Chromium on this machine.")
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.html"
        prompt = Path(folder) / "note.txt"
        prompt.write_text(f"{demo_note()}\n\n{QUESTION}", "utf-8")
        flags = ("-f", str(prompt), "-n", "128", "-t", "1", "--html", str(report))
        if not asked.page and (code := run(["generate", *flags])):
            return code
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=path, args=browser_flags())
            page = browser.new_page(
                viewport=SIZE,
                device_scale_factor=1.5,
                color_scheme="dark" if asked.dark else "light",
            )
            page.goto(asked.page or report.as_uri())
            (shoot_page if asked.page else shoot)(page, asked.output)
            browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
