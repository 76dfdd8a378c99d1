"""The pictures of the docs: text stays text, nothing is fetched, and they are of what they say."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pyte
import pytest

from scripts.make_picture import KEYS, lines_of, picture, refers_outside

ROOT = Path(__file__).resolve().parents[1]


def text_of(svg: str) -> str:
    return "".join(ElementTree.fromstring(svg).itertext()).replace("\xa0", " ")


def test_text_stays_text_and_nothing_is_fetched() -> None:
    screen = pyte.HistoryScreen(80, 4, history=100)
    pyte.Stream(screen).feed('</text><script>x</script><a href="http://x">[bold red]x[/]\r\n>>> ')
    svg = picture("chat", lines_of(screen))
    assert '<script>x</script><a href="http://x">[bold red]x[/]' in text_of(svg)
    assert not refers_outside(svg)
    tags = [element.tag for element in ElementTree.fromstring(svg).iter()]
    assert not [tag for tag in tags if tag.endswith(("script", "}a", "image"))]


@pytest.mark.parametrize("name", ["demo.svg", "chat.svg"])
def test_the_pictures_of_the_docs_stand_by_themselves(name: str) -> None:
    svg = (ROOT / "docs" / name).read_text("utf-8")
    assert svg.count("http") == svg.count("xmlns=") == 1 and not refers_outside(svg)
    assert f"docs/{name}" in (ROOT / "README.md").read_text("utf-8")
    if name == "chat.svg":  # of what the script types
        shown = text_of(svg)
        assert all(line in shown for line in (*KEYS[0].splitlines(), *KEYS[1:]))
        assert "What the expert changed" in shown
