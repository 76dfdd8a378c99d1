"""`--speed fast`: where expert and base do not run, what is taken instead, and that it is said."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from capt_local.decoding.batching import Request
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import (
    CombineOptions,
    FinishReason,
    GenerateOptions,
    Method,
    SampleOptions,
    Speed,
    Structure,
)
from capt_local.decoding.scoring import score_text
from tests.decoding.answers import Habit, Told, lettered, nothing_is_left_of_drafts, tell
from tests.decoding.test_many import TEXTS, Desk, check
from tests.decoding.test_reasoning import SAID, answer
from tests.decoding.test_same_answer import OTHERS, SOME, pair
from tests.decoding.test_structured import Texts
from tests.decoding.trios import assembly, turn
from tests.fakes import FakeModel, softmax, text_tokenizer

FAST = GenerateOptions(
    max_tokens=40, speed=Speed.FAST, combine=CombineOptions(alphas=(0.5,), plausibility=1e-4)
)
KINDS = {"sure": 0.2, "scale": 4.0, "max_rows": 16}


class Floored(Habit):
    """Decodes one by one what is to have the bits of single tokens; keeps the sizes of batches."""

    def __init__(self, *given: object, **kinds: object) -> None:
        super().__init__(*given, **kinds)  # type: ignore[arg-type]
        self.batch_floor = 1
        self.batches: list[int] = []

    def extend(self, tokens: Sequence[int], rows: int = 1) -> np.ndarray:
        self.batches.append(len(tokens))
        return super().extend(tokens, rows)

    def step(self, tokens: Sequence[int], rows: int = 1) -> np.ndarray:
        found = [self.extend((token,)).copy() for token in tokens]
        return np.concatenate(found)[len(found) - rows :]


def trio(seed: int) -> Mapping[str, FakeModel]:
    own, other = lettered(SOME), lettered(OTHERS)
    return {
        role: Floored(words, seed + place, **KINDS)
        for place, (role, words) in enumerate([("target", own), ("expert", other), ("base", other)])
    }


@pytest.mark.parametrize("plausibility", [1e-4, 0.1])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("alpha", [0.5, 0.02])
def test_expert_and_base_run_where_they_count_and_nowhere_else(
    alpha: float, temperature: float, plausibility: float
) -> None:
    """Each step against the target's own row, or against all models at every token."""
    sure = quiet = reminded = asked = several = 0
    combine = CombineOptions(alphas=(alpha,), plausibility=plausibility)
    sample = SampleOptions(temperature=temperature, seed=3)
    options = dataclasses.replace(FAST, sample=sample, combine=combine)
    for seed in range(6):
        told = tell(trio(seed), options)
        full = assembly(trio(seed)).build(dataclasses.replace(options, speed=Speed.EXACT_STEPS))
        full.start(turn(full, b"abc ab"))
        moved, since = 0.1, 0  # of the probability lately; tokens since they ran
        for step in told.steps:
            own, here = softmax(full.leader_row()), full.distribution()
            certain = len(here.candidates.tokens) == 1
            assert step.target_logp == pytest.approx(math.log(own[step.token]), abs=1e-5)
            if step.proxies_skipped:
                assert certain or own.max() >= 0.8 or (moved < 0.05 and since < 8)
                assert step.contrast is None and not step.changed
                assert step.logp == pytest.approx(step.target_logp, abs=1e-6)
                sure += own.max() >= 0.8
                quiet += own.max() < 0.8
                several += not certain
            else:
                assert not certain and own.max() < 0.8 and (moved >= 0.05 or since >= 8)
                assert step.logp == here.token_logp(step.token)
                reminded += moved < 0.05
                asked += 1
                both = np.exp(here.logp), np.exp(here.candidates.logp)
                moved, since = 0.9 * moved + 0.1 * np.abs(both[0] - both[1]).sum() / 2, 0
            since += 1
            full.advance(step.token)
        stats = told.generation.stats
        assert stats.proxies_skipped == sum(one.proxies_skipped for one in told.steps)
    assert sure > 20 and asked > 20 and several > 5
    assert alpha == 0.5 or (quiet > 5 and reminded > 1)


def test_proxies_catch_up_in_one_batch_of_any_size() -> None:
    largest = drafted = 0
    for seed in range(6):
        models = trio(seed)
        told = tell(models, FAST)
        stats = told.generation.stats
        needed = stats.steps - stats.proxies_skipped
        for role in ("expert", "base"):
            assert stats.passes.get(role, 0) <= needed  # the first row is the prompt's
            batches = models[role].batches  # type: ignore[attr-defined]
            assert len(batches) <= stats.passes.get(role, 0) + 2
            largest = max(largest, *batches[2:], 0)
        assert stats.passes["target"] == stats.decoded["target"]  # its tokens keep their bits
        drafted += stats.accepted
        nothing_is_left_of_drafts(told.trio)
    assert largest > 3 and drafted > 10


def test_what_has_no_skips_is_answered_as_by_auto_and_says_so() -> None:
    """Reports show expert and base at every token; published methods are what was published."""
    for options in (
        dataclasses.replace(FAST, top=3),
        *(dataclasses.replace(FAST, method=method) for method in Method),
    ):
        alone = options.method in (Method.TARGET, Method.EXPERT, Method.BASE)
        if options.method is Method.CAPT and not options.top:
            continue
        found = {
            speed: tell(pair(SOME, SOME, 1, **KINDS), dataclasses.replace(options, speed=speed))
            for speed in (Speed.FAST, Speed.AUTO)
        }
        assert found[Speed.FAST].steps == found[Speed.AUTO].steps
        said = [note for note in found[Speed.FAST].generation.notices if "--speed fast" in note]
        assert len(said) == (not alone)
        assert alone or ("nowhere" in said[0] and (not options.top or "--top-logprobs" in said[0]))


def test_an_answer_says_at_how_many_tokens_expert_and_base_took_no_part() -> None:
    told = tell(trio(1), FAST)
    skipped = told.generation.stats.proxies_skipped
    (said,) = [note for note in told.generation.notices if "--speed fast" in note]
    assert f" {skipped} of {len(told.steps)} " in said and skipped
    for speed in (Speed.AUTO, Speed.EXACT_STEPS):
        other = tell(trio(1), dataclasses.replace(FAST, speed=speed))
        assert not any("--speed" in note for note in other.generation.notices)
    # Where the weights are the target's alone every speed gives the same answer.
    alone = dataclasses.replace(FAST, combine=CombineOptions(powers=(1.0, 0.0, 0.0)))
    assert not tell(trio(1), alone).generation.notices


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_form_that_forbids_what_the_target_is_sure_of_asks_the_proxies(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = [b"abcabcabcabcab", b"bcaabcabc", b" abc"]
    monkeypatch.setattr(
        "capt_local.decoding.loop.SchemaConstraint", lambda own, *_: Texts(own, forms)
    )
    options = dataclasses.replace(
        FAST,
        structure=Structure("{}"),
        sample=SampleOptions(temperature=temperature, seed=1),
    )
    skipped = forbidden = 0
    for seed in range(12):
        told = tell(trio(seed), options)
        assert told.error is None and told.generation.structured
        full = assembly(trio(seed)).build(dataclasses.replace(options, speed=Speed.EXACT_STEPS))
        full.start(turn(full, b"abc ab"))
        for step in told.steps:
            own, several = (
                softmax(full.leader_row()),
                len(full.distribution().candidates.tokens) > 1,
            )
            skipped += step.proxies_skipped
            if own.max() >= 0.8 and several and not step.proxies_skipped:
                forbidden += 1
                assert own[step.token] < 0.8
            full.advance(step.token)
    assert skipped > 3 and forbidden > 3


def test_reasoning_is_the_targets_and_the_proxies_catch_up_behind_it() -> None:
    options = GenerateOptions(max_tokens=30, speed=Speed.FAST, combine=FAST.combine)
    generation, steps, _ = answer([*SAID[1:-1], b"Yes", b"<end>"], options, opened=True)
    assert generation.text == "Yes!Yes" and generation.thoughts == "hm card"
    assert not any(step.proxies_skipped for step in steps if step.thought)
    everywhere = dataclasses.replace(options, expert_in_thoughts=True)
    _, steps, _ = answer([*SAID[1:-1], b"Yes", b"<end>"], everywhere, opened=True)
    assert all(step.proxies_skipped for step in steps)  # sure of everything it says


def test_many_at_once_answer_as_alone() -> None:
    for alphas in ((0.5,), ()):
        options = dataclasses.replace(FAST, combine=CombineOptions(alphas=alphas), max_tokens=20)
        asks = [
            Request(text, dataclasses.replace(options, speed=speed))
            for text in TEXTS
            for speed in (Speed.FAST, Speed.AUTO)
        ]
        found = check(Desk(scale=6.0), asks)
        fast, auto = (
            sum(step.proxies_skipped for place in found for step in found[place].steps
                if place % 2 == odd) for odd in (0, 1)
        )  # fmt: skip
        assert fast > auto


@pytest.mark.parametrize("limit", range(30, 50, 5))
def test_a_full_context_of_a_proxy_ends_the_answer_where_it_does_at_any_speed(limit: int) -> None:
    def models() -> Mapping[str, FakeModel]:
        own, small = lettered(["abcabc", "bca bca", "ca", "ab"]), lettered(["ab"])
        kinds = {**KINDS, "sure": 1.0}
        return {
            "target": Habit(own, 4, **kinds),
            "expert": Habit(small, 5, limit=limit, **kinds),
            "base": Habit(small, 6, limit=limit, **kinds),
        }

    found = {speed: tell(models(), dataclasses.replace(FAST, speed=speed)) for speed in Speed}
    for told in found.values():  # the target is sure of every token, so the texts are the same
        assert told.generation.finish is FinishReason.LENGTH and told.error is None
        assert told.generation.text == found[Speed.EXACT_STEPS].generation.text
    assert 0 < len(found[Speed.FAST].steps) < FAST.max_tokens


def test_scores_of_known_text_are_of_all_models_at_any_speed() -> None:
    found = {}
    for speed in (Speed.FAST, Speed.EXACT_STEPS):
        options = dataclasses.replace(FAST, speed=speed, combine=CombineOptions())
        made = assembly(trio(2)).build(options, scoring=True)
        tokenizers = {each.role: text_tokenizer(each.model) for each in made.models}  # type: ignore
        found[speed] = score_text(made, tokenizers, b"abc ab ca bc abc cab ab b")
    assert found[Speed.FAST] == found[Speed.EXACT_STEPS]


def test_a_generation_reads_on_after_skips() -> None:
    """A second answer with the same models begins at the canonical tokens of its own prompt."""
    made = assembly(trio(3))
    first = tell({}, FAST, trio=made.build(FAST))
    again = tell({}, FAST, trio=made.build(FAST))
    assert isinstance(first, Told) and isinstance(first.generation, Generation)
    assert [step.token for step in again.steps] == [step.token for step in first.steps]
