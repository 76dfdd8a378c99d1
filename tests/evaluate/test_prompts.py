"""What a model is asked, and which choice its answer names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.evaluate.tasks import (
    EvalTask,
    Item,
    Kind,
    Measure,
    folded,
    messages,
    named_choice,
    text,
)
from capt_local.prompting.messages import Message

YES_NO = ("yes", "no", "maybe")
LETTERS = ("A", "B", "C", "D")
SECTIONS = ("FAM/SOCHX", "CC", "PLAN", "OTHER_HISTORY", "LABS")
TASK = EvalTask(
    "made-up",
    Kind.CLASSIFICATION,
    tuple(Item(str(n), "Is it so?", f"note {n} ${{x}}", "yes", YES_NO) for n in range(4)),
    Measure.CHOICE,
    digest="ab",
)
ASKED = "Is it so?\n\nnote 1 ${x}\n\nReply with one of these and nothing else: yes, no, maybe"


def test_a_question() -> None:
    item = TASK.items[1]
    assert messages(item, TASK) == [Message("user", ASKED)]
    assert text(item, TASK) == f"{ASKED}\n\nAnswer:"
    writing = EvalTask("w", Kind.GENERATION, (Item("a", "Sum up.", "x", "y"),), Measure.ROUGE)
    assert messages(writing.items[0], writing) == [Message("user", "Sum up.\n\nx")]


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("yes", "yes"),
        ("**No**", "no"),
        ("Yes, no change is needed.", "yes"),
        ("The answer is maybe.", "maybe"),
        ("From what is said I would say yes.\n\nQuestion: is it so?\nno", "yes"),
        ("yesterday", None),
        ("not yes", None),
        ("It isn't yes", None),
        ("yes or no", None),
        ("either yes or no", None),
        ("", None),
    ],
)
def test_an_answer_in_words(answer: str, named: str | None) -> None:
    assert named_choice(answer, YES_NO) == named


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("C) the third", "C"),
        ("D: none of these", "D"),
        ("B\nbecause it is so", "B"),
        ("A 67-year-old man comes", None),
        ("A or B", None),
        ("E", None),
    ],
)
def test_an_answer_that_is_a_letter(answer: str, named: str | None) -> None:
    assert named_choice(answer, LETTERS) == named


def test_the_longer_of_two_choices_is_the_one_that_is_named() -> None:
    choices = ("history", "history of illness")
    assert named_choice("History of illness.", choices) == "history of illness"
    assert named_choice("It is the history", choices) == "history"
    assert named_choice("It is the history of illness", choices) == "history of illness"
    assert named_choice("not entailed", ("entailed", "not entailed")) == "not entailed"


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=4))
def test_whatever_is_answered_a_choice_or_none_is_read(answer: str, choices: list[str]) -> None:
    distinct = [one for one in {folded(one): one.strip() for one in choices}.values() if one]
    if len(distinct) >= 2:
        assert named_choice(answer, distinct) in {*distinct, None}


@given(st.sampled_from([YES_NO, LETTERS, SECTIONS]), st.data())
def test_a_choice_names_itself(choices: tuple[str, ...], data: st.DataObject) -> None:
    choice = data.draw(st.sampled_from(choices))
    around = data.draw(st.sampled_from(["{}", " {}.", "**{}**", '"{}"', "{}\n\nand more", "({})"]))
    assert named_choice(around.format(choice), choices) == choice
