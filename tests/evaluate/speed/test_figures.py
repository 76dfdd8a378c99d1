"""Speeds, their spread, and ratios, from what answers took."""

from __future__ import annotations

import dataclasses

import pytest

from capt_local.evaluate.speed.batches import BatchCost, sizes_to_measure
from capt_local.evaluate.speed.bounds import bound
from capt_local.evaluate.speed.figures import Ratio, figures, ratios
from capt_local.evaluate.speed.taken import Drafts
from tests.evaluate.speed.answers import taken, turns


def test_the_first_token_comes_from_the_prompt() -> None:
    # Three tokens take two steps: at 10 a second, 0.2 s.
    one = taken([5, 6, 7], rate=10.0)
    assert (one.steps, one.seconds, one.rate) == (2, 0.2, pytest.approx(10.0))
    assert taken([5]).rate is None


def test_speed_is_over_all_and_spread_over_each() -> None:
    found = figures([taken([1] * 11, rate=10.0), taken([1] * 31, rate=30.0)])
    # 10 steps in 1 s and 30 in 1 s.
    assert found.rate == pytest.approx(20.0)
    assert found.rate_spread == pytest.approx(14.142, abs=1e-3)
    assert found.prefill == pytest.approx(200.0)
    assert (found.tokens, found.answers) == (40, 2)


def test_an_answer_of_one_token_counts_for_the_prompt_alone() -> None:
    found = figures([taken([1]), taken([1] * 11, sizes={"target": {1: 10}})])
    assert (found.tokens, found.answers) == (10, 1)
    assert found.passes == {"target": 1.0}
    assert figures([taken([1])]).rate is None


def test_forwards_positions_and_drafts_are_told_for_a_token() -> None:
    one = taken(
        [1] * 11,
        sizes={"target": {1: 1, 4: 4}, "expert": {8: 2}, "base": {}},
        decoded={"target": 15, "expert": 12},
        drafts=Drafts(20, 5, 4, 5, {"lookup": (20, 5)}),
        inside=0.8,
    )
    found = figures([one, one])
    assert found.passes == {"target": 0.5, "expert": 0.2, "base": 0}
    assert found.decoded == {"target": 1.5, "expert": 1.2}
    assert found.acceptance == 0.25
    assert found.gated == pytest.approx(8 / 22)  # of all tokens, the first ones too
    assert found.outside_share == pytest.approx(0.2 / 0.8)
    assert found.outside_ms == pytest.approx(20.0)
    told = found.as_object()
    assert told["forwards_per_token"] == {"target": 0.5, "expert": 0.2, "base": 0}
    assert told["forwards_by_size"] == {
        **{"target": {"1": 0.1, "4": 0.4}, "expert": {"8": 0.2}, "base": {}},
    }
    assert told["drafts"] == {
        "drafted": 40,
        "accepted": 10,
        "rounds": 10,
        "by_source": {"lookup": {"drafted": 40, "accepted": 10}},
    }


def test_a_prompt_that_was_there_already_says_nothing_about_prompts() -> None:
    again = dataclasses.replace(taken([1] * 11, rate=10.0), prompt_seconds=None)
    found = figures([again])
    assert found.prefill is None and found.rate == pytest.approx(10.0)
    assert figures([again, taken([1])]).prefill == pytest.approx(200.0)


def test_drafts_of_different_sources_stay_apart() -> None:
    both = Drafts(4, 2, 1, 1, {"lookup": (4, 2)}) + Drafts(3, 1, 0, 1, {"target-draft": (3, 1)})
    assert both == Drafts(7, 3, 1, 2, {"lookup": (4, 2), "target-draft": (3, 1)})


def test_ratios_are_taken_prompt_by_prompt() -> None:
    # The machine was four times slower at the second prompt; each pair still has the ratio 2.
    made = turns(
        target=[taken([1] * 11, rate=40.0), taken([1] * 11, rate=10.0), taken([1])],
        auto=[taken([1] * 11, rate=80.0), taken([1] * 11, rate=20.0), taken([1] * 11)],
    )
    found = ratios(made, ["target", "auto"], "target")
    assert list(found) == ["auto/target"]
    assert found["auto/target"] == Ratio(2.0, 2.0, 2.0, 0.0, 2)
    assert ratios(made, ["auto"], "target") == {}


def test_a_ratio_has_quartiles() -> None:
    found = Ratio.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found is not None
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    assert Ratio.of([]) is None
    assert Ratio.of([2.0]) == Ratio(2.0, 2.0, 2.0, 0.0, 1)


def test_the_bound_is_what_the_forwards_cost() -> None:
    costs = {"target": BatchCost(0.020, {1: 1.0}), "expert": BatchCost(0.008, {1: 1.0})}
    steps = figures([taken([1] * 11, sizes={"target": {1: 10}, "expert": {1: 10}})])
    alone = bound(steps, costs)
    assert alone is not None and alone.ratio == pytest.approx(20 / 28)
    assert bound(figures([taken([1])]), costs) is None


def test_each_batch_costs_what_one_of_its_size_costs() -> None:
    # Seven of one and one of eight; their mean size of 1.875 would cost 1.35 each.
    cost = {1: 1.0, 2: 1.4, 8: 2.9}
    drafted = figures([taken([1] * 11, sizes={"target": {1: 7, 8: 1}})])
    found = bound(drafted, {"target": BatchCost(0.020, cost)})
    assert found is not None
    assert found.seconds == {"target": pytest.approx((7 + 2.9) / 10 * 0.020)}
    assert found.ratio == pytest.approx(10 / 9.9)


def test_a_size_that_was_not_measured_lies_between_two_or_goes_on() -> None:
    cost = BatchCost(0.5, {1: 1.0, 32: 6.0, 64: 10.0})
    assert cost.seconds(64) == 5.0
    assert cost.seconds(48) == pytest.approx(4.0)
    assert cost.seconds(128) == pytest.approx(10.0)


def test_sizes_that_came_are_measured_and_large_ones_enclosed() -> None:
    usual = [1, 2, 3, 4, 5, 6, 7, 8, 16]
    assert sizes_to_measure([]) == sizes_to_measure([1, 4]) == usual
    assert sizes_to_measure([12, 31]) == [*usual[:-1], 12, 16, 31]
    assert sizes_to_measure([50, 100, 128]) == [*usual, 32, 64, 128]
    made = turns(
        target=[taken([1, 2], sizes={"target": {1: 1}})] * 2,
        auto=[taken([1, 2], sizes={"target": {12: 1}}), taken([1, 2], sizes={"expert": {3: 1}})],
    )
    assert made.sizes() == {"target": {1, 12}, "expert": {3}}
