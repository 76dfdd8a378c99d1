"""What a trace says about an answer, as tokens."""

from __future__ import annotations

from capt_local.evaluate.speed.replay.script import Script
from capt_local.evaluate.speed.replay.trace import Offer, Place, Walked

OFFER = Offer(grades=(3, 3, 1), right=2, plausible=2)
ANSWER = Walked(
    {"target": 5},
    (
        Place(False, True, 0.9, {"lookup": OFFER}),
        Place(True, True, 1.0, {}),
        Place(False, False, 0.2, {}),
    ),
)
SAID = [11, 12, 13, 14, 15]


def test_what_is_said_does_not_depend_on_the_models() -> None:
    script = Script(ANSWER, SAID, start=7)  # the prompt took two tokens more here
    assert [script.token(n) for n in range(3)] == [11, 12, 13]
    assert [script.gated(length) for length in (7, 8, 9)] == [False, True, False]


def test_an_offer_is_right_as_far_as_the_trace_says_and_wrong_from_there() -> None:
    script = Script(ANSWER, SAID, start=7)
    assert script.offer("lookup", 7) == OFFER and script.offer("lookup", 8) is None
    draft = script.draft(OFFER, 7)
    assert draft[:2] == [11, 12] and len(draft) == 3
    assert draft[2] != 13 and draft[2] in SAID


def test_a_wrong_token_differs_also_where_the_text_repeats_itself() -> None:
    script = Script(ANSWER, [11, 11, 11, 11, 12], start=7)
    wrong = Offer(grades=(0, 0), right=0, plausible=0)
    assert script.draft(wrong, 7) == [12, 12]


def test_behind_the_last_token_nothing_new_is_offered() -> None:
    script = Script(ANSWER, SAID, start=7)
    assert script.place(10) == script.place(9) == ANSWER.places[-1]
