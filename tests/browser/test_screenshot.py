"""The picture of the README is a PNG of the answer's part of a report."""

from __future__ import annotations

import struct
from pathlib import Path

from capt_local.report.html import page
from scripts.make_screenshot import SIZE, shoot
from tests.browser.conftest import Open
from tests.report.answers import long_answer


def size(file: Path) -> tuple[int, int]:
    head = file.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    return width, height


def test_a_report_is_shot_down_to_the_end_of_the_answer(opens: Open, tmp_path: Path) -> None:
    opened = opens(page(long_answer(300)), viewport=SIZE)
    shoot(opened.page, tmp_path / "report.png")
    end = opened.page.locator("section.answer").bounding_box()
    width, height = size(tmp_path / "report.png")
    assert width == SIZE["width"]
    assert end["y"] + end["height"] < height < opened.run("document.body.scrollHeight")
