"""Identities of the method that hold exactly (METHOD: alpha 0, expert = base, one vocabulary)."""

from __future__ import annotations

import numpy as np
import pytest

from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.options import CombineOptions, Exponents, GenerateOptions, SampleOptions
from capt_local.decoding.prompt_weights import prefill
from tests.decoding.trios import PROXY, TARGET, make_trio, toy, turn, walk
from tests.fakes import FakeModel, softmax

SAMPLED = GenerateOptions(max_tokens=40, sample=SampleOptions(temperature=1.0, seed=5))
GREEDY = GenerateOptions(max_tokens=40)


def answer(trio: Ensemble, options: GenerateOptions) -> list[int]:
    trio.start(turn(trio))
    return [step.token for step in walk(trio, options)]


def alone(options: GenerateOptions) -> list[int]:
    trio = toy()
    return answer(Ensemble(trio.leader, (), CombineOptions()), options)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED])
def test_alpha_zero_is_the_target(options: GenerateOptions) -> None:
    assert answer(toy(CombineOptions(alphas=(0.0,))), options) == alone(options)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED])
@pytest.mark.parametrize("powers", [(1.0, 1.0, 1.0), (1.0, 2.5, 2.5), (1.0, -1.0, -1.0)])
def test_expert_equal_to_base_is_the_target(options: GenerateOptions, powers: Exponents) -> None:
    models = [FakeModel(TARGET, 1), FakeModel(PROXY, 2), FakeModel(PROXY, 2)]
    assert answer(make_trio(*models, CombineOptions(powers=powers)), options) == alone(options)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_one_vocabulary_is_proxy_tuning(alpha: float) -> None:
    """softmax(l_T + alpha (l_E - l_A)), Liu et al. 2024, over every token of the vocabulary."""
    models = [FakeModel(TARGET, seed, scale=1.5) for seed in (1, 2, 3)]
    trio = make_trio(*models, CombineOptions(alphas=(alpha,), plausibility=0.0))
    trio.start(turn(trio))
    for _ in range(20):
        here = trio.distribution()
        rows = [model.logits(trio.tokens).astype(np.float64) for model in models]
        wanted = softmax(rows[0] + alpha * (rows[1] - rows[2]))
        np.testing.assert_allclose(np.exp(here.logp), wanted, rtol=2e-3, atol=1e-7)
        trio.advance(int(here.logp.argmax()))


def test_the_contrast_changes_the_answer_and_is_recorded() -> None:
    trio = toy(CombineOptions(alphas=(1.0,)))
    trio.start(turn(trio))
    steps = list(walk(trio, GenerateOptions(max_tokens=40, top=3)))
    assert [step.token for step in steps] != alone(GREEDY)
    changed = [step for step in steps if step.changed]
    assert changed and all(step.target_rank > 0 for step in changed)
    for step in steps:
        assert step.top[0].logp >= step.top[-1].logp
        assert step.target_top[0] == step.target_choice
        assert len(step.expert_top) == len(step.base_top) == 3


def test_log_probability_of_every_token_sums_to_one() -> None:
    trio = toy(CombineOptions(plausibility=1e-2))
    trio.start(turn(trio))
    trio.set_weights(prefill(trio, turn(trio)).weights)
    for _ in range(5):
        here = trio.distribution()
        logs = [here.token_logp(token) for token in range(len(TARGET))]
        np.testing.assert_allclose(np.exp(logs).sum(), 1.0, rtol=1e-5)
        trio.advance(int(here.candidates.tokens[here.logp.argmax()]))
