"""When a draft is made and how long: costs and records with numbers made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from capt_local.decoding.speculate.costs import Costs
from capt_local.decoding.speculate.draft import LEADING, Draft
from capt_local.decoding.speculate.leading import TargetDraft, grade_of
from capt_local.decoding.speculate.lookup import Lookup
from capt_local.decoding.speculate.policy import Policy, Record
from capt_local.decoding.speculate.reading_along import ExpertDraft
from capt_local.decoding.stopwatch import Stopwatch, rounded
from capt_local.llama.devices import Kernels

LENGTH = 200
SIZES = [{"target": 11, "expert": 5, "base": 5}, {"target": 8, "expert": 7, "base": 7}]
MACHINES = {
    "processor": Kernels(),
    "fours": Kernels(by_fours=True),
    "tiles": Kernels(tiles=True),
    "GPU": Kernels(on_gpu=True),
    "slow": Kernels(),
}


@dataclass
class Named:
    """What a policy knows of a source."""

    name: str
    leader: str | None
    priors: tuple[float, ...]


SOURCES = [
    Named(each.name, each.leader, each.priors) for each in (Lookup, TargetDraft, ExpertDraft)
]


def costs_of(machine: str, sizes: dict[str, int]) -> Costs:
    kernels = MACHINES[machine]
    costs = Costs.of(sizes, "target", lambda count: kernels.cost(kernels.filled(count)))
    if machine == "slow":
        costs.more = 4.0
    return costs


def answered(
    costs: Costs, sources: list[Any], right: Callable[[int], bool], *, always: bool = False
) -> tuple[float, list[int]]:
    """The cost of an answer over that of its steps, and the lengths of the drafts."""
    policy = Policy(costs, sources, always=always)
    spent, said, lengths = 0.0, 0, []
    while said < LENGTH:
        most, grade = LENGTH - said - 1, said % 4
        gains = [policy.gain(each, grade, most) for each in sources]
        source = sources[gains.index(max(gains))]
        drafted: list[int] = []
        if policy.allows(max(gains)):
            go_on = policy.go_on(source, most)
            while len(drafted) < most and go_on(grade):
                drafted.append(grade)
        if not drafted:
            policy.stepped()
            spent, said = spent + costs.step, said + 1
            continue
        lengths.append(len(drafted))
        count = next((n for n in range(len(drafted)) if not right(said + n)), len(drafted))
        chosen = count + (source.leader != LEADING or count < len(drafted))
        policy.checked(source, Draft(drafted, drafted), count, chosen)
        spent, said = spent + costs.check(len(drafted), source.leader), said + chosen
    return spent / (said * costs.step), lengths


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("sources", [SOURCES[:1], SOURCES[1:2], SOURCES[2:], SOURCES])
def test_no_source_makes_an_answer_slower_by_more_than_two_percent(
    machine: str, sizes: dict[str, int], sources: list[Named]
) -> None:
    costs = costs_of(machine, sizes)
    for right in (
        lambda place: False,
        lambda place: place < LENGTH // 2,  # trusted, then wrong
        lambda place: place % 10 < 5,
        lambda place: place % 2 == 0,
    ):
        ratio, _ = answered(costs, sources, right)
        assert ratio <= 1.02 + 1e-9


@pytest.mark.parametrize("machine", ["processor", "fours", "tiles", "GPU"])
def test_a_source_that_is_right_is_followed_further_and_pays(machine: str) -> None:
    costs = costs_of(machine, SIZES[0])
    ratio, lengths = answered(costs, SOURCES[:1], lambda place: True)
    assert ratio < 0.5
    assert lengths[0] < max(lengths[1:])
    assert lengths[-2] >= 8


def test_a_wrong_source_is_given_up_and_taken_up_again() -> None:
    costs = costs_of("processor", SIZES[0])
    _, lengths = answered(costs, SOURCES[:1], lambda place: False)
    assert 0 < len(lengths) < LENGTH / 10
    ratio, _ = answered(costs, SOURCES[:1], lambda place: place >= LENGTH // 4)
    assert ratio < 0.75


def test_a_source_that_was_asked_for_always_drafts() -> None:
    costs = costs_of("slow", SIZES[0])
    for source in SOURCES:
        _, lengths = answered(costs, [source], lambda place: False, always=True)
        assert len(lengths) == LENGTH - 1  # but for the last token, behind which none can stand


def test_a_draft_that_the_answer_left_unasked_says_nothing() -> None:
    policy = Policy(costs_of("processor", SIZES[0]), SOURCES[:1])
    record = policy._records["lookup"]
    before = record.chance(0)
    policy.checked(SOURCES[0], Draft([1, 2, 3], [0, 0, 0]), 0, 0)
    assert record.chance(0) == before
    policy.checked(SOURCES[0], Draft([1, 2, 3], [0, 1, 2]), 1, 1)
    assert record.chance(0) > before and record.chance(1) == SOURCES[0].priors[1]
    policy.checked(SOURCES[0], Draft([1, 2, 3], [0, 1, 2]), 1, 2)
    assert record.chance(1) < SOURCES[0].priors[1] and record.chance(2) == SOURCES[0].priors[2]


def test_a_record_starts_with_the_prior_and_forgets() -> None:
    record = Record((0.5, 0.9))
    assert (record.chance(0), record.chance(1)) == (0.5, 0.9)
    assert record.chance(-1) == pytest.approx(0.7)
    for _ in range(300):
        record.observe(0, right=False)
    assert record.chance(0) < 0.001 and record.chance(1) == 0.9
    for _ in range(60):
        record.observe(0, right=True)
    assert record.chance(0) > 0.8


def linear(count: int) -> float:
    return 1.0 + 0.1 * (count - 1)


def test_costs_by_hand() -> None:
    costs = Costs({"expert": 0.5, "base": 0.5}, linear, more=2.0)
    assert costs.batch(0) == 0.0 and costs.batch(1) == 1.0
    assert costs.batch(4) == pytest.approx(1.6) and costs.batch(1.5) == pytest.approx(1.1)
    assert costs.step == pytest.approx(1 + costs.batch(1.2))
    # Three tokens by lookup: four through the target, 4.8 through each of the others.
    assert costs.check(3, None) == pytest.approx(costs.batch(4) + costs.batch(4.8))
    # By the target: three one by one, no fourth; the others check the three.
    assert costs.check(3, LEADING) == pytest.approx(3 + costs.batch(3.6))
    # By the expert: 3.6 pieces one by one and the one that was there.
    wanted = costs.batch(4) + 0.5 * 4.6 + 0.5 * costs.batch(4.8)
    assert costs.check(3, "expert") == pytest.approx(wanted)


def test_where_the_expert_leads_its_own_draft_is_priced_as_such() -> None:
    led = Costs.of({"expert": 5, "target": 10, "base": 5}, "expert", linear)
    assert led.check(4, LEADING) == pytest.approx(4 + 3 * led.batch(4.8))


@pytest.mark.parametrize(
    ("share", "more"), [(-1.0, 0.125), (0.05, 0.5), (0.11, 1.0), (0.2, 2.0), (9.0, 8.0)]
)
def test_a_stopwatch_rounds_what_further_tokens_cost(share: float, more: float) -> None:
    watch = Stopwatch(linear)
    for place in range(12):
        assert watch.more is None
        watch.time(1, 0.01)
        watch.time(2 + place % 5, 0.01 * (1 + share * (1 + place % 5)))
    assert watch.one == 0.01 and watch.more == more


def test_a_stopwatch_is_not_misled_by_prompts_and_stops_when_it_knows() -> None:
    watch = Stopwatch(linear)
    for _ in range(50):
        watch.time(1, 0.01)
        watch.time(500, 9.0)
    assert watch.more is None
    for _ in range(12):
        watch.time(4, 0.01 * 1.6)
    assert watch.more == 2.0
    for _ in range(99):
        watch.time(4, 9.0)
    assert watch.more == 2.0


def test_rounding_to_powers() -> None:
    assert [rounded(ratio, 2.0) for ratio in (0.3, 0.7, 0.71, 1.4, 3.0)] == [
        0.25, 0.5, 1.0, 1.0, 4.0
    ]  # fmt: skip
    assert rounded(0.45, 2.0**0.5) == pytest.approx(0.5)


def test_grades() -> None:
    assert [grade_of(share) for share in (0.0, 0.29, 0.3, 0.6, 0.89, 0.9, 1.0)] == [
        0, 0, 1, 2, 2, 3, 3
    ]  # fmt: skip


def test_what_steps_show_of_the_target_is_learnt_without_a_draft() -> None:
    """Its priors alone would not make it draft; at 7 of 8 choices its own it pays."""
    costs = costs_of("fours", SIZES[0])
    source: Any = SOURCES[1]
    policy = Policy(costs, [source])
    assert not policy.allows(policy.gain(source, -1, 60))
    for place in range(40):
        policy.stepped()
        policy.seen(source, 3 if place % 4 else 1, right=place % 8 != 0)
    assert policy.allows(policy.gain(source, -1, 60))
    for _ in range(40):
        policy.seen(source, 1, right=False)
    assert not policy.allows(policy.gain(source, -1, 60))
