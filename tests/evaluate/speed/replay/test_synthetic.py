"""Traces by chance have the shares that they are named after."""

from __future__ import annotations

import pytest

from capt_local.decoding.speculate.leading import grade_of
from capt_local.errors import UsageError
from capt_local.evaluate.speed.replay.synthetic import SHARES, synthetic


@pytest.mark.parametrize("percent", SHARES)
def test_the_share_of_unchanged_choices(percent: int) -> None:
    trace = synthetic(percent, answers=3, steps=200)
    assert trace.share("own") == pytest.approx(percent / 100, abs=1e-9)
    assert trace.share("gated") == 0.0
    assert trace.places == 600 and trace.source == f"synthetic {percent} %"


def test_drafts_are_right_as_long_as_the_choices_are_the_targets_own() -> None:
    (answer,) = synthetic(75, answers=1, steps=64).answers
    for place, each in enumerate(answer.places):
        offer = each.offers["target-draft"]
        ahead = answer.places[place : place + len(offer.grades)]
        assert [one.own for one in ahead[: offer.right]] == [True] * offer.right
        assert offer.right == len(ahead) or not ahead[offer.right].own
        assert offer.grades == tuple(grade_of(one.sure) for one in ahead)
        assert offer.plausible == len(offer.grades)  # its own tokens always are


def test_the_same_seed_gives_the_same_trace() -> None:
    assert synthetic(60, answers=1) == synthetic(60, answers=1)
    assert synthetic(60, answers=1) != synthetic(60, answers=1, seed=2)


@pytest.mark.parametrize("percent", [0, 101])
def test_a_share_that_is_none(percent: int) -> None:
    with pytest.raises(UsageError):
        synthetic(percent)
