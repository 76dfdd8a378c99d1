"""Views of an answer: marked words, the largest changes, formulas, and what they say in words."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.decoding.options import Choice, FinishReason, Step
from capt_local.report.answers import (
    changed_words,
    clipped,
    formula,
    in_words,
    largest_shifts,
    marked_text,
    nats,
    quoted,
    shift_table,
    summary_line,
    views,
)
from capt_local.report.html import cells as cells_of
from capt_local.report.html import contrasts, details, page
from capt_local.report.json import Answer, warnings
from capt_local.report.views import Span, cells, plain
from tests.report.answers import an_answer, long_answer, step

PIECES = [
    (b"He has", None, 0.5),
    (b" pneumonia", b" a cold", 3.25),
    (b".", None, -1.0),
    (b"", b" He", 2.0),
]


def text(answer: Answer) -> str:
    return "\n".join(line for view in views(answer) for line in plain(view))


@pytest.mark.parametrize(
    ("pieces", "marked"),
    [
        (["The ", "*lungs", " are"], "The [lungs] are"),
        (["pneumo", "*nia", " is"], "[pneumonia] is"),  # a piece of a word marks the word
        (["*pneumo", "nia,", " and"], "[pneumonia], and"),
        (["38", "*.", "6 degrees"], "38[.]6 degrees"),
        (["a*", "*b"], "a*[b]"),
        (["患者", "*发热", "三天"], "患者[发热]三天"),  # no spaces: each piece stands for itself
    ],
)
def test_words_are_marked_as_words(pieces: list[str], marked: str) -> None:
    steps = [
        step(i, piece.removeprefix("*").encode(), instead=b"x" if piece[:1] == "*" else None)
        for i, piece in enumerate(pieces)
    ]
    shown = "".join(f"[{s.text}]" if s.marked else s.text for s in marked_text(steps))
    assert shown == marked


def test_a_character_in_two_tokens_and_bytes_held_back_keep_their_mark() -> None:
    steps = [step(0, b"\xc2", instead=b"m"), step(1, b"\xb5"), step(2, b" g")]
    assert marked_text(steps) == (Span("µ", True), Span(" g"))
    steps = [step(0, b"", instead=b"x"), step(1, b"EN ")]
    assert changed_words(steps) == (1, 1)


@given(st.binary(max_size=30), st.lists(st.integers(1, 5), max_size=10))
def test_no_text_is_lost_or_made_up(data: bytes, sizes: list[int]) -> None:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    pieces.append(data[at:])
    steps = [step(i, piece, instead=b"z" if i % 2 else None) for i, piece in enumerate(pieces)]
    whole = "".join(s.text for s in marked_text([step(0, data)]))
    assert "".join(s.text for s in marked_text(steps)) == whole
    assert changed_words(steps)[1] == len(whole.split())


def test_the_largest_changes_come_first_and_the_same_one_once() -> None:
    again = Choice(10, b"a", -2.0), Choice(9, b"b", -0.2)
    same = [
        Step(i, 10, b"a", logp, -2.0, 3, again[1], top=again)
        for i, logp in enumerate((-1.0, -0.5, -0.9))
    ]
    assert [s.index for s in largest_shifts(same)] == [1]
    steps = [
        step(0, b"a", instead=b"b", logp=-1.0, target_logp=-2.0),
        step(1, b"c", logp=-0.1, target_logp=-9.0),  # moved far, but the target agrees
        step(2, b"d", instead=b"e", logp=-0.5, target_logp=-6.0),
    ]
    assert [s.index for s in largest_shifts(steps)] == [2, 0]
    assert shift_table([step(0, b"a")]).rows == ()
    assert len(shift_table(long_answer(100).steps).rows) <= 10


def test_control_tokens_are_an_end_and_no_text() -> None:
    assert [quoted(p) for p in (b"", b"<|im_end|>", b"</s>", b"< 5")] == ["(end)"] * 3 + ['"< 5"']
    assert quoted(b"\x1b[2J\n\t\xc2") == '"\\x1b[2J\\n\\t\\xc2"'


def test_what_a_reader_must_know_is_said() -> None:
    answer = an_answer(PIECES)
    assert "drawn at random" not in text(answer)
    steps = [*answer.steps[:1], replace(answer.steps[1], likeliest=99), *answer.steps[2:]]
    assert "drawn at random" in text(replace(answer, steps=steps))
    assert "interrupted" in text(an_answer(PIECES, FinishReason.INTERRUPTED))
    assert "the answer is empty" in text(an_answer([(b"", None, 0.0)])).replace("\n", " ")
    hostile = replace(an_answer([(b"a\x1b]0;x\x07", b"\x1b[2J", 2.0)]), notices=("\x1b[31m",))
    assert "\x1b" not in text(hostile)


def test_the_context_is_that_of_the_fullest_model_by_name() -> None:
    answer = replace(
        an_answer(PIECES, FinishReason.LENGTH),
        context={"target": (14, 4096), "expert": (508, 512), "base": (500, 512)},
        provenance={"parameters": {"max_tokens": 64}},
    )
    assert "context 508/512 (expert)" in summary_line(answer)
    assert "expert is full (508 of 512 tokens)" in warnings(answer)[0]
    assert "ctx-size" in warnings(answer)[0] and "max-tokens" not in warnings(answer)[0]
    reached = replace(answer, provenance={"parameters": {"max_tokens": 4}})
    assert "max-tokens" in warnings(reached)[0] and "ctx-size" not in warnings(reached)[0]
    looped = replace(answer, finish=FinishReason.REPETITION, context={})
    assert "(no-repetition-stop lets" in warnings(looped)[0]
    assert "context 16/512 (expert)" in summary_line(an_answer(PIECES))  # only prompts counted
    alone = replace(answer, prompt_tokens={"target": 10}, context={"target": (14, 4096)})
    assert "context 14/4096 |" in summary_line(alone)


def test_a_contrast_that_was_not_computed_is_not_zero() -> None:
    assert [nats(x) for x in (None, math.nan, 0.0, -1.234)] == ["not run", "?", "+0.00", "-1.23"]
    known, unknown = step(0, b"a", contrast=0.0), replace(step(1, b"b"), contrast=None)
    assert contrasts([unknown, known]) == {1: 0.0}
    assert "No contrast is known." in page(replace(an_answer([]), steps=[unknown], text=b"b"))
    found = details(cells_of(replace(an_answer([]), steps=[known, unknown], text=b"ab")))["steps"]
    assert [row[7] for row in found] == [0.0, None]


@given(st.text(max_size=40), st.integers(4, 30))
def test_a_clipped_text_fits(text: str, width: int) -> None:
    assert cells(clipped(text, width)) <= width
    assert clipped(text, width) == text or cells(text) > width


@pytest.mark.parametrize(
    ("powers", "short", "long"),
    [
        ((1.0, 0.0, 0.0), "target", "target"),
        ((1.0, 0.5, 0.5), "alpha 0.5", "target + 0.5 (expert - base)"),
        ((1.0, -0.5, -0.5), "alpha -0.5", "target - 0.5 (expert - base)"),
        ((0.25, 1.0, 0.25), "0.25 target + expert - 0.25 base", "0.25 target + expert - 0.25 base"),
        ((0.5, 0.5, 0.0), "0.5 target + 0.5 expert", "0.5 target + 0.5 expert"),
        (
            (1.0, 0.5, 0.5, 1.0, 1.0),
            "alpha 0.5, 1",
            "target + 0.5 (expert 1 - base 1) + (expert 2 - base 2)",
        ),
    ],
)
def test_a_combination_has_a_name_and_a_formula(
    powers: tuple[float, ...], short: str, long: str
) -> None:
    assert (in_words([(powers, 1.0)]), formula(powers)) == (short, long)


def test_formula_and_weights_agree() -> None:
    mixed = (((1.0, 0.0, 0.0), 0.3), ((1.0, 0.5, 0.5), 0.699), ((0.0, 1.0, 0.0), 0.001))
    assert in_words(mixed) == "alpha 0.5 (70 %), target (30 %)"
    assert in_words(()) == ""
    assert "Weights: alpha 0.5 (70 %), target (30 %)." in text(
        replace(an_answer(PIECES), weights=mixed)
    )
    fixed = replace(an_answer(PIECES), weights=(((1.0, 0.5, 0.5), 1.0),))
    assert "Target + 0.5 (expert - base):" in text(
        replace(fixed, alone=an_answer([(b"x", None, 0.0)]))
    )
