"""The recording of a chat: what the terminal showed, as a picture that stands by itself."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pyte
import pytest

pytest.importorskip("termios", reason="Windows has no pseudo-terminals")

from scripts.make_chat_recording import KEYS, lines_of, picture
from scripts.make_picture import refers_outside

ROOT = Path(__file__).resolve().parents[1]


def shown(written: str) -> pyte.HistoryScreen:
    screen = pyte.HistoryScreen(40, 4, history=100)
    pyte.Stream(screen).feed(written)
    return screen


def test_the_picture_holds_the_text_and_fetches_nothing() -> None:
    svg = picture(lines_of(shown('<script>x</script> <a href="http://x">\r\n>>> ')))
    text = "".join(ElementTree.fromstring(svg).itertext()).replace("\xa0", " ")
    assert "<script>x</script>" in text and not refers_outside(svg)


def test_the_recording_in_the_docs_is_of_what_the_script_types() -> None:
    svg = (ROOT / "docs" / "chat.svg").read_text("utf-8")
    text = "".join(ElementTree.fromstring(svg).itertext()).replace("\xa0", " ")
    assert not refers_outside(svg) and svg.count("http") == svg.count("xmlns=") == 1
    for line in (*KEYS[0].splitlines(), *KEYS[1:]):
        assert line in text
    assert "What the expert changed" in text
