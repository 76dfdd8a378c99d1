"""Sources of drafts that are wrong, broken or greedy: the answer is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from capt_local.decoding.options import CombineOptions, GenerateOptions, SampleOptions, Speed
from capt_local.decoding.speculate import setup
from capt_local.decoding.speculate.draft import Draft, DraftSource
from tests.decoding.speculate.answers import (
    Habit,
    Oracle,
    Told,
    adds_up,
    lettered,
    nothing_is_left_of_drafts,
    same,
    tell,
)
from tests.fakes import FakeModel

WORDS = ["ab", "bc", "ca", " ab", "abc", "cab ", "b c"]
OTHERS = ["ac", "ba", "cc", " b", "aab", "bc a"]
COUNT = 40
OPTIONS = GenerateOptions(max_tokens=COUNT, combine=CombineOptions(alphas=(0.5,)))
STEPWISE = GenerateOptions(
    max_tokens=COUNT, combine=CombineOptions(alphas=(0.5,)), speed=Speed.EXACT_STEPS
)


def models(seed: int = 3, **kinds: Any) -> Mapping[str, FakeModel]:
    own, other = lettered(WORDS), lettered(OTHERS)
    made = {"target": own, "expert": other, "base": other}
    kinds.setdefault("max_rows", 16)
    return {role: Habit(made[role], seed + at, **kinds) for at, role in enumerate(made)}


@pytest.fixture(scope="module")
def plain() -> Told:
    return tell(models(), STEPWISE)


def drafted(
    monkeypatch: pytest.MonkeyPatch, *sources: DraftSource, always: bool = True, **kinds: Any
) -> Told:
    """The answer with these sources; drafts are made even where they do not pay."""
    monkeypatch.setattr(setup, "sources", lambda trio: list(sources))
    if always:
        policy = setup.Policy
        monkeypatch.setattr(
            setup, "Policy", lambda costs, found, **_: policy(costs, found, always=True)
        )
    return tell(models(**kinds), OPTIONS)


def tokens(told: Told) -> list[int]:
    return [step.token for step in told.steps]


def test_one_that_is_always_right_takes_many_tokens_a_pass(
    monkeypatch: pytest.MonkeyPatch, plain: Told
) -> None:
    oracle = Oracle(tokens(plain), lambda left, count: left[:count])
    told = drafted(monkeypatch, oracle)
    same(told, plain)
    adds_up(told)
    tally = told.generation.tally
    assert tally.accepted == tally.drafted > 0.8 * COUNT
    for role, passes in plain.generation.tally.passes.items():
        assert tally.passes[role] < 0.6 * passes


def test_one_that_is_always_wrong_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, plain: Told
) -> None:
    def wrong(left: list[int], count: int) -> list[int]:
        return [token % 6 + 2 if token % 6 + 2 != token else 3 for token in left[:count]]

    told = drafted(monkeypatch, Oracle(tokens(plain), wrong))
    same(told, plain)
    adds_up(told)
    tally = told.generation.tally
    assert tally.accepted == 0 < tally.drafted
    assert not told.generation.tally.notices


@pytest.mark.parametrize("token", [0, 1])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_end_and_control_tokens_in_a_draft(
    monkeypatch: pytest.MonkeyPatch, plain: Told, token: int, place: int
) -> None:
    def guess(left: list[int], count: int) -> list[int]:
        return [*left[:place], token, *left[place:]][:count]

    told = drafted(monkeypatch, Oracle(tokens(plain), guess))
    same(told, plain)
    assert told.generation.tally.drafted


def test_an_end_in_a_draft_that_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = 0
    for seed in range(6):
        plain = tell(models(seed, end_logit=9.0), STEPWISE)
        said = tokens(plain)
        oracle = Oracle(said, lambda left, count: left[:count])
        told = drafted(monkeypatch, oracle, seed=seed, end_logit=9.0)
        same(told, plain)
        adds_up(told)
        ended += said[-1] == 1 and told.generation.tally.accepted > 0
    assert ended


def test_one_that_returns_more_than_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, plain: Told
) -> None:
    said = tokens(plain)
    told = drafted(monkeypatch, Oracle(said, lambda left, count: [*left, *said * 50]))
    same(told, plain)
    assert told.generation.tally.notices == []
    assert told.generation.tally.accepted > 0
    # Nothing was read that the answer could not have held.
    assert told.generation.tally.decoded["target"] <= 2 * COUNT


class Broken(Oracle):
    """Fails in one of its calls, the first time or later."""

    def __init__(self, said: list[int], call: str, after: int, error: Exception) -> None:
        super().__init__(said, lambda left, count: left[:count])
        self.call, self.left, self.error = call, after, error

    def _maybe(self, call: str) -> None:
        if call == self.call:
            if not self.left:
                raise self.error
            self.left -= 1

    def start(self, *given: Any) -> None:
        super().start(*given)
        self._maybe("start")

    def grade(self, *given: Any) -> int | None:
        self._maybe("grade")
        return super().grade(*given)

    def seen(self, *given: Any) -> None:
        self._maybe("seen")

    def draft(self, *given: Any) -> Draft:
        self._maybe("draft")
        return super().draft(*given)


@pytest.mark.parametrize("call", ["start", "grade", "draft"])
@pytest.mark.parametrize("after", [0, 2])
def test_one_that_throws_is_switched_off_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, plain: Told, call: str, after: int
) -> None:
    after = 0 if call == "start" else after
    broken = Broken(tokens(plain), call, after, KeyError("the patient's name"))
    right = Oracle(tokens(plain), lambda left, count: left[:count], name="right", priors=(0.1,))
    told = drafted(monkeypatch, broken, right)
    same(told, plain)
    (said,) = told.generation.tally.notices
    assert "oracle failed (KeyError) and are switched off" in said and "name" not in said
    tally = told.generation.tally
    assert tally.by_source["right"].accepted > 0  # the other one goes on
    assert ("oracle" in tally.by_source) == (after > 0)


def test_one_that_throws_when_it_is_told_what_came(
    monkeypatch: pytest.MonkeyPatch, plain: Told
) -> None:
    broken = Broken(tokens(plain), "seen", 2, KeyError("the patient's name"))
    broken.priors = (0.0,)  # it never drafts
    told = drafted(monkeypatch, broken, always=False)
    same(told, plain)
    (said,) = told.generation.tally.notices
    assert "oracle failed (KeyError) and are switched off" in said and "name" not in said


def bare(draft: Callable[[Oracle], Draft]) -> type[Oracle]:
    class Bare(Oracle):
        def draft(self, *given: Any) -> Draft:
            return draft(self)

    return Bare


@pytest.mark.parametrize(
    "draft",
    [
        Draft([2, 3], [0]),
        Draft([2], [0, 0]),
        Draft([2], [7]),
        Draft([2], [-1]),
        Draft([10**6], [0]),
    ],
    ids=["too few grades", "too many", "no such grade", "a negative one", "no such token"],
)
def test_one_that_returns_nonsense_is_switched_off(
    monkeypatch: pytest.MonkeyPatch, plain: Told, draft: Draft
) -> None:
    told = drafted(monkeypatch, bare(lambda _: draft)([], lambda left, count: []))
    same(told, plain)
    assert len(told.generation.tally.notices) == 1


def test_a_grade_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, plain: Told) -> None:
    class Odd(Oracle):
        def grade(self, trio: object) -> int | None:
            return 5

    told = drafted(monkeypatch, Odd([], lambda left, count: []))
    same(told, plain)
    assert "(IndexError)" in told.generation.tally.notices[0]


def test_one_that_offers_nothing_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, plain: Told
) -> None:
    told = drafted(monkeypatch, Oracle([], lambda left, count: []))
    same(told, plain)
    assert told.generation.tally.by_source == {}
    assert told.generation.tally.passes["target"] == plain.generation.tally.passes["target"]


def test_an_answer_that_is_left_alone_leaves_nothing_wrong(plain: Told) -> None:
    """Whoever stops asking for steps in the middle of a draft may ask the same models again."""
    made = models()
    trio = tell(made, GenerateOptions(max_tokens=1)).trio
    for stop_at in range(1, 12):
        begun = tell(made, GenerateOptions(max_tokens=1), trio=trio)
        abandoned = iter(
            type(begun.generation)(
                trio, begun.generation.prompts,
                GenerateOptions(max_tokens=COUNT, speed=Speed.TARGET_DRAFT), None,
            )
        )  # fmt: skip
        for _ in range(stop_at):
            next(abandoned)
        again = tell(made, STEPWISE, b"abc ab", trio=trio)
        nothing_is_left_of_drafts(trio)
        assert tokens(again) == tokens(plain)


def test_a_seed_gives_one_answer_whatever_is_drafted(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(5):
        sample = SampleOptions(temperature=1.0, seed=seed)
        stepwise = GenerateOptions(max_tokens=COUNT, sample=sample, speed=Speed.EXACT_STEPS)
        plain = tell(models(), stepwise)
        said = tokens(plain)
        for guess in (lambda left, n: left[:n], lambda left, n: [left[0], 2, 3, 4][:n]):
            oracle = Oracle(said, guess)
            monkeypatch.setattr(setup, "sources", lambda trio, oracle=oracle: [oracle])
            told = tell(models(), GenerateOptions(max_tokens=COUNT, sample=sample))
            same(told, plain)
            assert told.generation.tally.accepted
