"""Changed tokens are marked where they stand, and the table tells the largest shifts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.decoding.step import Choice, Step
from capt_local.report.answers import (
    clipped,
    largest_shifts,
    marked_text,
    nats,
    probability,
    quoted,
    said,
    shift_table,
)
from capt_local.report.html import cells as cells_of
from capt_local.report.html import chart, contrasts, details
from capt_local.report.views import Span, cells, plain
from tests.report.answers import an_answer
from tests.report.steps import step


def test_changed_tokens_are_marked() -> None:
    steps = [step(0, b"The "), step(1, b"lungs", instead=b"heart"), step(2, b" are")]
    assert marked_text(steps) == (Span("The "), Span("lungs", True), Span(" are"))


def test_a_character_in_two_tokens_is_marked_when_either_was_changed() -> None:
    steps = [step(0, b"\xc2", instead=b"m"), step(1, b"\xb5"), step(2, b"g")]
    assert marked_text(steps) == (Span("µ", True), Span("g"))


def test_bytes_held_back_for_a_stop_string_keep_their_mark() -> None:
    steps = [step(0, b"", instead=b"x"), step(1, b"EN ")]
    assert marked_text(steps) == (Span("EN ", True),)


@given(st.binary(max_size=30), st.lists(st.integers(1, 5), max_size=10), st.randoms())
def test_no_text_is_lost_or_made_up(data: bytes, sizes: list[int], random: object) -> None:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    pieces.append(data[at:])
    steps = [step(i, piece, instead=b"z" if i % 2 else None) for i, piece in enumerate(pieces)]
    whole = marked_text([step(0, data)])
    assert "".join(s.text for s in marked_text(steps)) == "".join(s.text for s in whole)


def test_the_largest_shifts_come_first_and_only_changed_tokens_count() -> None:
    steps = [
        step(0, b"a", instead=b"b", logp=-1.0, target_logp=-2.0),
        step(1, b"c", logp=-0.1, target_logp=-9.0),  # moved far, but the target agrees
        step(2, b"d", instead=b"e", logp=-0.5, target_logp=-6.0),
    ]
    assert [s.index for s in largest_shifts(steps)] == [2, 0]
    assert [s.index for s in largest_shifts(steps, 1)] == [2]


def test_the_table() -> None:
    steps = [step(0, b" pneumonia", instead=b" cold\n", logp=-0.5, target_logp=-6.0, contrast=4.0)]
    assert plain(shift_table(steps)) == [
        "Largest shifts",
        "  step  target alone      p  was said      p target  p all  contrast",
        '     1  " cold\\n"     0.779  " pneumonia"     0.002  0.607     +4.00',
    ]


def test_a_contrast_that_nobody_was_asked_for_is_not_zero() -> None:
    assert [nats(x) for x in (None, math.nan, 0.0, -1.234)] == ["not asked", "?", "+0.00", "-1.23"]
    asked, not_asked = step(0, b"a", contrast=0.0), replace(step(1, b"b"), contrast=None)
    assert contrasts([not_asked, asked]) == {1: 0.0}
    assert chart([not_asked]).said == "No contrast is known."
    found = details(cells_of(replace(an_answer([]), steps=[asked, not_asked], text=b"ab")))["steps"]
    assert [row[7] for row in found] == [0.0, None]


def test_no_table_when_nothing_changed() -> None:
    assert shift_table([step(0, b"a")]).rows == ()


def test_the_same_change_is_told_once_at_its_largest() -> None:
    again = Choice(10, b"a", -2.0), Choice(9, b"b", -0.2)
    steps = [
        Step(i, 10, b"a", logp, -2.0, 3, again[1], top=again)
        for i, logp in enumerate((-1.0, -0.5, -0.9))
    ]
    assert [s.index for s in largest_shifts(steps)] == [1]


def test_a_token_in_quotes_is_one_line_without_escape_sequences() -> None:
    assert quoted(b"\x1b[2J\n\t") == '"\\x1b[2J\\n\\t"'
    assert quoted(b"\xc2") == '"\\xc2"'
    assert quoted(b"") == "(end)"


def test_what_was_said_is_known_when_a_stop_string_holds_it_back() -> None:
    held = Step(0, 5, b"", -0.1, -0.2, 0, Choice(5, b"EN", -0.2), top=(Choice(5, b"EN", -0.1),))
    assert said(held) == b"EN"


def test_probabilities_for_people() -> None:
    assert [probability(x) for x in (0.0, -0.7, -20.0, float("-inf"), float("nan"))] == [
        "1.000", "0.497", "2e-09", "0e+00", "?",
    ]  # fmt: skip


@given(st.text(max_size=40), st.integers(4, 30))
def test_a_clipped_text_fits(text: str, width: int) -> None:
    assert cells(clipped(text, width)) <= width
    assert clipped(text, width) == text or cells(text) > width


def test_a_long_text_is_clipped_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []

    def counted(text: str) -> int:
        looked_at.append(len(text))
        return cells(text)

    monkeypatch.setattr("capt_local.report.answers.cells", counted)
    assert clipped("体温" * 5_000, 12) == "体温体温体…"
    assert sum(looked_at) < 100


def test_wide_characters_take_two_columns() -> None:
    assert cells("体温") == 4
    assert cells("e\u0301") == 1
