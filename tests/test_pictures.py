"""The pictures of the docs: text stays text, nothing is fetched, and they are of what they say."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pyte
import pytest

from capt_local.report.views import Pane, Span
from scripts.make_picture import KEYS, chat_picture, demo_picture, lines_of, refers_outside

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = '</text><script>x</script><a href="http://x">[bold red]x[/] :smile: \x1b[31m'


def text_of(svg: str) -> str:
    return "".join(ElementTree.fromstring(svg).itertext()).replace("\xa0", " ")


def test_text_stays_text_and_nothing_is_fetched() -> None:
    svg = demo_picture([Pane("t", (Span(HOSTILE),))])
    assert "[bold red]x[/] :smile: \\x1b[31m" in text_of(svg) and "<script>" in text_of(svg)
    tags = [element.tag for element in ElementTree.fromstring(svg).iter()]
    assert not [tag for tag in tags if tag.endswith(("script", "}a", "image"))]
    screen = pyte.HistoryScreen(40, 4, history=100)
    pyte.Stream(screen).feed('<script>x</script> <a href="http://x">\r\n>>> ')
    svg = chat_picture(lines_of(screen))
    assert "<script>x</script>" in text_of(svg) and not refers_outside(svg)


@pytest.mark.parametrize("name", ["demo.svg", "chat.svg"])
def test_the_pictures_of_the_docs_stand_by_themselves(name: str) -> None:
    svg = (ROOT / "docs" / name).read_text("utf-8")
    assert svg.count("http") == svg.count("xmlns=") == 1 and not refers_outside(svg)
    assert f"docs/{name}" in (ROOT / "README.md").read_text("utf-8")
    if name == "chat.svg":  # of what the script types
        shown = text_of(svg)
        assert all(line in shown for line in (*KEYS[0].splitlines(), *KEYS[1:]))
        assert "What the expert changed" in shown
