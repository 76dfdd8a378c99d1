"""Answers beside those that they must be equal to."""

from __future__ import annotations

import json

import pytest

from capt_local.evaluate.speed.same import Difference, Shift, sameness
from tests.evaluate.speed.answers import taken, turns


def test_equal_answers_and_the_shift_of_their_scores() -> None:
    made = turns(
        steps=[taken([1, 2, 3], logps=[-1.0, -2.0, -3.0])],
        auto=[taken([1, 2, 3], logps=[-1.0, -2.001, -3.0])],
    )
    found = sameness(made.pairs("steps", "auto"), "steps")
    assert (found.same, found.answers, found.differences) == (1, 1, ())
    assert found.shift is not None
    assert found.shift.steps == 3 and found.shift.largest == pytest.approx(0.001)


def test_scores_behind_a_difference_are_of_other_texts() -> None:
    made = turns(
        steps=[taken([1, 2, 3], logps=[-1.0, -2.0, -3.0])],
        auto=[taken([1, 9, 3], logps=[-1.0, -7.0, -9.0])],
    )
    found = sameness(made.pairs("steps", "auto"), "steps")
    assert found.shift == Shift(0.0, 0.0, 1)
    assert found.differences == (Difference(1, 1, (2, 9)),)
    assert found.same == 0


def test_an_answer_that_goes_on_is_a_difference() -> None:
    made = turns(steps=[taken([1, 2])], auto=[taken([1, 2, 3])])
    found = sameness(made.pairs("steps", "auto"), "steps")
    assert found.differences == (Difference(1, 2, (None, 3)),)
    assert found.shift is None


def test_a_difference_is_explained_by_scores_that_hardly_moved() -> None:
    shift = Shift(1e-5, 1e-4, 500)
    # The two changed places, and moved by 1e-4 altogether.
    near = Difference(3, 7, (5, 6), (-1.00000, -1.00005), (-1.00005, -1.00000))
    assert near.distance == pytest.approx(1e-4)
    assert near.explained(shift)
    far = Difference(3, 7, (5, 6), (-1.0, -2.0), (-2.0, -1.0))
    assert not far.explained(shift)
    assert Difference(3, 7, (5, 6)).explained(shift) is None
    # Known on one side alone: it went over to the other side, by the distance at least.
    assert Difference(3, 7, (5, 6), (-1.0, -1.0003)).explained(shift)
    assert not Difference(3, 7, (5, 6), (-1.0, -1.001)).explained(shift)
    # A fault that moves every score would explain itself.
    assert not near.explained(Shift(0.3, 0.5, 500))
    told = json.dumps(far.as_object(shift))
    assert '"tokens": [5, 6]' in told and '"batch_arithmetic": false' in told
