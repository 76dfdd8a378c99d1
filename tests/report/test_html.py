"""The page: all of the text and nothing else, a strict policy, cells of whole characters."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.documents import Document
from capt_local.errors import UsageError
from capt_local.report.answers import spelled
from capt_local.report.html import (
    cells,
    page,
    policy,
)
from capt_local.report.json import Answer, with_sources
from capt_local.report.views import visible
from tests.report.answers import an_answer, long_answer

HOSTILE = [
    "<script>document.title='x'</script>",
    "</script><script>document.title='x'</script>",
    "</style><style>*{display:none}</style>",
    "<!--", "-->", "]]>", "<!--<script>",
    "\"'><img src=http://x onerror=alert(1)>", "' onmouseover='x", "&lt;&amp;&#60;",
    "{{ 7*7 }}{% raw %}", "javascript:alert(1)", "\u2028\u2029", "\x00\x1b[2J\x7f\x85\ufffe",
    "\u202egnp.exe\u202c\u2066x\u2069", "\ufeff\u200b", "${x}`", "\\u003cscript>",
]  # fmt: skip


class Reader(HTMLParser):
    """What a page holds: tags, attributes, and the text of the strip."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.strip, self._in_strip, self.data, self._in_data = "", 0, "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if self._in_strip or given.get("id") == "strip":
            self._in_strip += 1
        self._in_data = given.get("id") == "data"

    def handle_endtag(self, tag: str) -> None:
        self._in_strip -= bool(self._in_strip)

    def handle_data(self, data: str) -> None:
        self.strip += data if self._in_strip else ""
        self.data += data if self._in_data else ""
        self._in_data = False


def read(source: str) -> Reader:
    reader = Reader()
    reader.feed(source)
    reader.close()
    return reader


def said(*pieces: str | bytes) -> Answer:
    data = [piece if isinstance(piece, bytes) else piece.encode() for piece in pieces]
    return an_answer((piece, b"other", 2.0) for piece in data)


TAGS = {tag for tag, _ in read(page(said("a"))).tags}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    answer = said("a ", text, " b")
    choice = replace(answer.steps[0].target_choice, piece_bytes=text.encode())
    first = replace(answer.steps[0], target_choice=choice)
    answer = replace(
        answer,
        steps=[first, *answer.steps[1:]],
        notices=(text,),
        model=text,
        id=text,
        provenance={"method": text, text: {text: [text]}},
    )
    source = page(replace(answer, alone=answer))
    found = read(source)
    assert {tag for tag, _ in found.tags} - {"h3"} == TAGS
    assert [tag for tag, _ in found.tags].count("script") == 2
    assert found.strip.rstrip() == visible(f"a {text} b").rstrip()
    assert spelled(text.encode()) in json.loads(found.data)["pieces"]
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", source
    )


@given(st.lists(st.text(max_size=12), max_size=6))
def test_whatever_is_said_stands_in_the_page(pieces: list[str]) -> None:
    answer = said(*[piece.encode("utf-8", "replace") for piece in pieces])
    found = read(page(answer))
    shown = visible(answer.text.decode())
    assert found.strip.strip() == shown.strip()
    names = {name for _, given in found.tags for name in given}
    assert not [name for name in names if name.startswith("on") or name == "style"]
    assert not names & {"src", "srcset", "action", "background", "ping", "formaction"}


def test_nothing_is_loaded_and_only_our_own_script_runs() -> None:
    source = page(said("a"))
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.S)
    (style,) = re.findall(r"<style>(.*?)</style>", source, re.S)
    (given,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', source)
    rules = dict(rule.split(" ", 1) for rule in html.unescape(given).split("; "))
    for text, rule in ((script, "script-src"), (style, "style-src")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert (rules["default-src"], rules["base-uri"], rules["form-action"]) == ("'none'",) * 3
    assert policy(style, script) == html.unescape(given)
    assert not re.search(r"https?://|@import|url\(|//[a-z]", style + script.replace("// ", ""))
    links = [given["href"] for tag, given in read(source).tags if tag == "a"]
    assert links and all(link and link.startswith("#t") for link in links)


def test_provenance_that_nobody_wrote_is_refused() -> None:
    deep: dict[str, object] = {}
    for _ in range(200):
        deep = {"a": deep, "b": 1}
    with pytest.raises(UsageError, match="too deeply"):
        page(replace(said("a"), provenance=deep))
    for created in (10**400, 10**12, -1):
        assert "Made" not in page(replace(said("a"), created=created)) or created == -1


# Cells


def texts(*pieces: str | bytes) -> list[str]:
    return [cell.lead + cell.text + cell.trail for cell in cells(said(*pieces))]


def test_parts_of_one_character_are_one_cell() -> None:
    assert texts(b"38 \xc2", b"\xb0C") == ["38 °C"]
    assert texts(b"\xf0", b"\x9f", b"\xab", b"\x80", " x") == ["🫀", " x"]
    assert texts("👩", "\u200d", "⚕️", "!") == ["👩\u200d⚕️", "!"]
    assert texts("🇩", "🇪", "🇫", "🇷") == ["🇩🇪", "🇫🇷"]
    assert texts("e", "\u0301", "👍", "🏽") == ["e\u0301", "👍🏽"]


def test_every_step_is_in_one_cell_and_all_text_is_there() -> None:
    answer = said(b"", "a", b"\xe2\x82", b"", b"\xac", "\n\n", " b ", b"")
    found = cells(answer)
    assert [s.index for cell in found for s in cell.steps] == list(range(8))
    assert [(c.lead, c.text, c.trail) for c in found] == [
        ("", "a", ""), ("", "€", ""), ("", "\n\n", ""), (" ", "b", " "), ("", "", ""),
    ]  # fmt: skip
    assert [c.name for c in found] == ["", "", "line break", "", "the end of the answer"]


@given(st.lists(st.binary(max_size=4), max_size=8))
def test_cells_never_lose_text(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    assert "".join(texts(*pieces)) == visible(whole.decode("utf-8", "replace"))


def test_a_long_answer_is_a_small_page() -> None:
    assert len(page(replace(long_answer(2000), alone=long_answer(2000))).encode()) < 2_000_000


def test_facts_are_marked_and_lead_to_their_place_in_the_note() -> None:
    note = "Question?\n\nTakes <b>aspirin 81 mg."
    answer = with_sources(
        an_answer([(b"Takes aspirin", None, 0.1), (b" 5 mg", None, 0.1), (b"<i>.", None, 0.1)]),
        Document("Takes <b>aspirin 81 mg."),
        None,
        "document",
    )
    made = page(answer, note, len("Question?\n\n"))
    assert re.search(r'<a id="s0"></a>Takes &lt;b&gt;', made)
    assert '<a id="f0"></a><mark>aspirin</mark> 81 mg' in made and 'href="#f0"' in made
    assert "1 of 2 facts not found in the document" in made.lower()
    assert re.search(r'class="[^"]* u"[^>]*>5 mg', made) and "<i>." not in made
    assert "Where the note has it" not in page(replace(answer, sources=None), note)
