"""The picture of the README: stands by itself, and shows what the demo showed."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from capt_local.report.views import Pane, Span
from scripts.make_picture import OUTSIDE, main, picture, refers_outside
from tests.cli.fake_runtime import Script, install, model_flags

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = '</text><script>x</script><a href="http://x">[bold red]x[/] :smile: \x1b[31m'


def test_text_stays_text_and_nothing_is_fetched() -> None:
    svg = picture([Pane("t", (Span(HOSTILE),))])
    root = ElementTree.fromstring(svg)
    text = "".join(root.itertext()).replace("\xa0", " ")
    assert "[bold red]x[/] :smile: \\x1b[31m" in text
    assert "<script>" in text
    assert not [e for e in root.iter() if e.tag.endswith(("script", "}a", "image"))]


def test_what_would_be_refused() -> None:
    for bad in ("@font-face", "@import 'x'", "<image x", 'href="x"', "url(x)", "url('http://x')"):
        assert OUTSIDE.search(bad)
    assert not OUTSIDE.search('clip-path="url(#capt-line-1)"')
    assert refers_outside('<style></style><image href="x"/>')
    assert not refers_outside("<style></style><text>href=x url(x)</text>")


def test_the_demo_is_played_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Script())
    file = tmp_path / "demo.svg"
    arguments = [*model_flags(tmp_path), "-o", str(file)]
    monkeypatch.setattr(sys, "argv", ["make_picture", *arguments])
    assert main() == 0
    root = ElementTree.parse(file).getroot()
    text = "".join(root.itertext()).replace("\xa0", " ")
    for part in ("note of a visit", "HISTORY OF PRESENT ILLNESS", "Largest changes", "often wrong"):
        assert part in text


def test_the_picture_in_the_readme_stands_by_itself() -> None:
    svg = (ROOT / "docs" / "demo.svg").read_text("utf-8")
    assert svg.count("http") == svg.count('xmlns="http://www.w3.org/2000/svg"') == 1
    assert not refers_outside(svg)
    assert "docs/demo.svg" in (ROOT / "README.md").read_text("utf-8")
