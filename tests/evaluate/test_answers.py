from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.evaluate.styles import after_marker, named_choice, vote

YES_NO = ("yes", "no", "maybe")
LETTERS = ("A", "B", "C", "D")
SECTIONS = ("FAM/SOCHX", "CC", "PLAN", "OTHER_HISTORY", "LABS")


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("yes", "yes"),
        (" Yes.\n", "yes"),
        ("**No**", "no"),
        ("yes, because the trial was large", "yes"),
        ("Yes, no change is needed.", "yes"),
        ("The answer is maybe.", "maybe"),
        ("Answer: no", "no"),
        ("the correct answer is: yes", "yes"),
        ("From what is said I would say yes.\n\nQuestion: is it so?\nno", "yes"),
        ("yes\n\nno\nmaybe", "yes"),
        ("nobody knows", None),
        ("yesterday", None),
        ("not yes", None),
        ("It is not a yes", None),
        ("It isn't yes", None),
        ("yes or no", None),
        ("yes, no or maybe", None),
        ("either yes or no", None),
        ("", None),
        ("...", None),
        ("I cannot tell", None),
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
        ("B.", "B"),
        ("**C**", "C"),
        ("C) the third", "C"),
        ("D: none of these", "D"),
        ("B\nbecause it is so", "B"),
        ("The answer is B.", "B"),
        ("the best option is (D) since it is", "D"),
        ("The answer is D because of the fever", "D"),
        ("I think that (C) fits", "C"),
        ("A 67-year-old man comes", None),
        ("Answer: A patient like this", None),
        ("A or B", None),
        ("Option A or B", None),
        ("(A) or (B)", None),
        ("Because", None),
        ("E", None),
        ("", None),
    ],
)
def test_an_answer_that_is_a_letter(answer: str, named: str | None) -> None:
    assert named_choice(answer, LETTERS) == named


def test_the_longer_of_two_choices_is_the_one_that_is_named() -> None:
    choices = ("history", "history of illness")
    assert named_choice("History of illness.", choices) == "history of illness"
    assert named_choice("It is the history", choices) == "history"
    assert named_choice("It is the history of illness", choices) == "history of illness"
    assert named_choice("entailed", ("entailed", "not entailed")) == "entailed"
    assert named_choice("not entailed", ("entailed", "not entailed")) == "not entailed"


def test_letters_name_choices_only_where_they_were_shown() -> None:
    choices = ("atrial flutter", "asthma")
    assert named_choice("B.", choices, letters=True) == "asthma"
    assert named_choice("Answer: (A)", choices, letters=True) == "atrial flutter"
    assert named_choice("B.", choices) is None
    assert named_choice("asthma", choices, letters=True) == "asthma"


def test_the_answer_is_what_stands_behind_the_last_marker() -> None:
    assert after_marker("Answer: yes? No.\nanswer: no", "Answer:") == " no"
    assert after_marker("I do not know", "Answer:") is None
    assert after_marker("a (x) b", "(x)") == " b"


def test_most_votes_win_and_the_first_of_equals() -> None:
    assert vote(["no", "yes", "yes"]) == "yes"
    assert vote(["no", "yes", "yes", "no"]) == "no"
    assert vote([None, "yes", None]) == "yes"
    assert vote([None, None]) is None
    assert vote([]) is None
    assert vote(["B cell", "the T cell", "b  Cell"]) == "B cell"


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=4))
def test_whatever_is_said_a_choice_or_none_is_read(answer: str, choices: list[str]) -> None:
    distinct = list({" ".join(one.casefold().split()): one.strip() for one in choices}.values())
    distinct = [one for one in distinct if one]
    if len(distinct) >= 2:
        assert named_choice(answer, distinct, letters=True) in {*distinct, None}


@given(st.sampled_from([YES_NO, LETTERS, SECTIONS]), st.data())
def test_a_choice_names_itself(choices: tuple[str, ...], data: st.DataObject) -> None:
    choice = data.draw(st.sampled_from(choices))
    around = data.draw(st.sampled_from(["{}", " {}.", "**{}**", '"{}"', "{}\n\nand more", "({})"]))
    assert named_choice(around.format(choice), choices) == choice
