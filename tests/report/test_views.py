"""Nothing that a terminal obeys gets through, wherever the stream is cut, and nothing is lost."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.report.answers import LEGEND, both, shift_table
from capt_local.report.drawing import drawn, progress_line, progress_width
from capt_local.report.views import (
    Beside,
    Pane,
    Prose,
    Sanitiser,
    Span,
    Table,
    TerminalInfo,
    View,
    cells,
    plain,
    visible,
)
from tests.report.answers import an_answer

OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)

ATTACKS = [
    b"\x1b]52;c;cm0gLXJm\x07",  # writes the clipboard
    b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\",  # a link that shows another text
    b"\x1b[2J\x1b[1;1H",  # clears the screen
    b"\xc2\x9b31m",  # CSI as one C1 character
    b"dose 5 mg\rdose 50 mg",  # overwrites a line
    b"a\x08b\x7f",
    "\u202e gm 05 \u2066x\u2069".encode(),  # turns the direction around
    "\U000e0041\U000e0042".encode(),  # tags: text that nobody sees
    b"\xed\xa0\x80",  # a lone surrogate
    b"\xff\xfe\x00",
]

hostile = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(ATTACKS),
    st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
)


def whole(data: bytes) -> str:
    sanitiser = Sanitiser()
    return sanitiser.feed(data) + sanitiser.flush()


@given(st.lists(hostile, max_size=6).map(b"".join))
def test_nothing_that_a_terminal_obeys_gets_through(data: bytes) -> None:
    assert not OBEYED.search(whole(data))


@pytest.mark.parametrize("attack", ATTACKS)
def test_known_attacks_become_visible(attack: bytes) -> None:
    shown = whole(attack)
    assert not OBEYED.search(shown)
    assert all(c == "\n" or c == "\t" or unicodedata.category(c)[0] != "C" for c in shown)
    assert "\\" in shown or "\ufffd" in shown


@given(st.lists(hostile, max_size=4).map(b"".join), st.lists(st.integers(0, 200), max_size=12))
def test_the_text_is_the_same_wherever_the_stream_is_cut(data: bytes, marks: list[int]) -> None:
    cuts = sorted({0, len(data), *(mark for mark in marks if mark < len(data))})
    sanitiser = Sanitiser()
    parts = [sanitiser.feed(data[a:b]) for a, b in pairwise(cuts)]
    assert "".join(parts) + sanitiser.flush() == whole(data)


@pytest.mark.parametrize(
    "text",
    [
        "BP 120/80 mmHg, 5 µg\n\t- naïve café",
        "体温 38°C",
        "می\u200cخواهم",  # Persian needs the zero-width non-joiner
        "👩\u200d⚕️",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert whole(text.encode()) == text
    assert visible(text) == text


STYLE = re.compile(r"\x1b\[[0-9;]*m")
CANARY = "\x1b]52;\x07[bold red]x[/] :smile: [link=//x] \u202e\x9b2J"
SPELLED = r"\x1b]52;\x07[bold red]x[/] :smile: [link=//x] \u202e\x9b2J"


ALONE = replace(an_answer([(b"It is a cold.", None, 0.0)]), prompt_tokens={"target": 9}, weights=())
TOGETHER = an_answer([(b"It is", None, 0.0), (b" pneumonia", b" a", 2.0), (b".", None, 0.0)])
FIGURES = shift_table(TOGETHER.steps)


def shown(view: View, width: int, **look: object) -> list[str]:
    """What is drawn, without styles and trailing blanks."""
    text = STYLE.sub("", drawn(view, TerminalInfo(width, **look)))  # type: ignore[arg-type]
    return [line.rstrip() for line in text.splitlines()]


@pytest.mark.parametrize("width", [100, 60, 20, 1])
def test_without_colour_there_is_bold_and_underline_alone(width: int) -> None:
    for view in (both(ALONE, TOGETHER), FIGURES, LEGEND):
        assert set(STYLE.findall(drawn(view, TerminalInfo(width)))) <= {
            "\x1b[1m",
            "\x1b[1;4m",
            "\x1b[0m",
        }


@pytest.mark.parametrize("width", [160, 80, 40])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    for view in (both(ALONE, TOGETHER), LEGEND, Table("t", (("name", "value " * 40),))):
        assert all(cells(line) <= width for line in shown(view, width))


VIEWS: list[View] = [
    Prose.of(CANARY),
    Pane("t", (Span(CANARY),)),
    Pane("t", (Span(CANARY, marked=True),)),
    Pane(CANARY, ()),
    Pane("t", (), CANARY),
    Table(CANARY, (("a",),)),
    Table("t", ((CANARY, "b"),)),
    Table("t", (("a", "b"),), (CANARY, "y"), right=(0,)),
    Beside(Pane(CANARY, ()), Pane("t", (Span(CANARY),))),
]


@pytest.mark.parametrize("view", VIEWS, ids=range(len(VIEWS)))
@pytest.mark.parametrize("colour", [False, True])
def test_no_text_is_an_instruction(view: View, colour: bool) -> None:
    on_terminal = STYLE.sub("", drawn(view, TerminalInfo(400, colour=colour)))
    for text in (on_terminal, "\n".join(plain(view))):
        assert SPELLED in re.sub(r"[│\n]", "", text)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)


def test_a_terminal_without_unicode_gets_ascii() -> None:
    for view in (both(ALONE, TOGETHER), FIGURES):
        assert drawn(view, TerminalInfo(110, encoding="ascii")).isascii()
    assert progress_line("loading", 0.5, TerminalInfo(40, encoding="ascii")).isascii()


@pytest.mark.parametrize("width", [1, 5, 20, 80])
def test_a_progress_line_is_one_line_that_fits(width: int) -> None:
    look = TerminalInfo(width)
    line = STYLE.sub("", progress_line("loading " + CANARY, 0.3, look))
    assert "\n" not in line
    assert cells(line) <= progress_width(look) <= max(width - 1, 1)
