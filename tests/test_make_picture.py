"""The picture of the README: stands by itself, and shows what the demo showed."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from capt_local.report.views import Pane, Span
from scripts.make_picture import picture, refers_outside

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = '</text><script>x</script><a href="http://x">[bold red]x[/] :smile: \x1b[31m'


def test_text_stays_text_and_nothing_is_fetched() -> None:
    svg = picture([Pane("t", (Span(HOSTILE),))])
    root = ElementTree.fromstring(svg)
    text = "".join(root.itertext()).replace("\xa0", " ")
    assert "[bold red]x[/] :smile: \\x1b[31m" in text
    assert "<script>" in text
    assert not [e for e in root.iter() if e.tag.endswith(("script", "}a", "image"))]


def test_the_picture_in_the_readme_stands_by_itself() -> None:
    svg = (ROOT / "docs" / "demo.svg").read_text("utf-8")
    assert svg.count("http") == svg.count('xmlns="http://www.w3.org/2000/svg"') == 1
    assert not refers_outside(svg)
    assert "docs/demo.svg" in (ROOT / "README.md").read_text("utf-8")
