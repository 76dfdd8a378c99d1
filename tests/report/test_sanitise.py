"""Nothing that a terminal obeys gets through, wherever the stream is cut, and nothing is lost."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.report.views import Sanitiser, visible

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
