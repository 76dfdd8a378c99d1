"""Rules: one distribution from the rows of all models, against the formulas by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.alignment.paper import TokenStrings
from capt_local.decoding.baselines import Choices, PaperCapt, Unite, contrastive, proxy_tuning
from capt_local.decoding.combine import plausible
from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.options import CombineOptions, Exponents, GenerateOptions, Method
from tests.decoding.trios import PROXY, TARGET, assembly, make_trio, toy, turn, walk
from tests.fakes import FakeModel, softmax, text_tokenizer
from tests.published_toys import best

LIMITS = st.sampled_from([0.0, 1e-5, 1e-2, 0.3, 1.0])
POWERS = st.tuples(*[st.floats(-2, 2)] * 3)
PUBLISHED = [Method.CAPT_PAPER, Method.UNITE, Method.PROXY_TUNING, Method.CONTRASTIVE]


def everything(trio: Ensemble) -> np.ndarray:
    """Log-probabilities of all tokens of the leading model."""
    here = trio.distribution()
    return np.array([here.token_logp(token) for token in range(len(here.row))])


@settings(max_examples=40)
@given(LIMITS, st.one_of(st.just(()), POWERS), st.lists(st.integers(2, 265), max_size=6))
def test_every_combination_sums_to_one(
    limit: float, powers: tuple[float, ...], answer: list[int]
) -> None:
    trio = toy(CombineOptions(powers=powers, plausibility=limit))
    trio.start(turn(trio))
    for token in answer:
        trio.advance(token)
    np.testing.assert_allclose(np.exp(everything(trio)).sum(), 1.0, rtol=1e-5)


@settings(max_examples=30)
@given(LIMITS, st.lists(st.integers(2, 265), max_size=6))
def test_the_target_alone_is_its_softmax_to_the_last_digit(limit: float, answer: list[int]) -> None:
    trio = toy(CombineOptions(powers=(1.0, 0.0, 0.0), plausibility=limit))
    alone = Ensemble(toy().leader, (), CombineOptions(plausibility=limit))
    for each in (trio, alone):
        each.start(turn(each))
        for token in answer:
            each.advance(token)
    np.testing.assert_allclose(everything(trio), everything(alone), rtol=1e-12, atol=1e-12)
    wanted = softmax(FakeModel(TARGET, 1).logits(trio.tokens))
    np.testing.assert_allclose(np.exp(everything(alone)), wanted, rtol=1e-5)


@settings(max_examples=30)
@given(LIMITS, POWERS, st.lists(st.integers(2, 265), max_size=6))
def test_a_product_is_its_formula_over_what_the_proxies_say(
    limit: float, powers: Exponents, answer: list[int]
) -> None:
    """score = a * logp_T + b * logp_E - c * logp_A over the plausible tokens."""
    trio = toy(CombineOptions(powers=powers, plausibility=limit))
    trio.start(turn(trio))
    for token in answer:
        trio.advance(token)
    here = trio.distribution()
    own = plausible(FakeModel(TARGET, 1).logits(trio.tokens), limit)
    np.testing.assert_array_equal(here.candidates.tokens, own.tokens)
    floor = trio.proxies[0].alignment.floor
    a, b, c = powers
    score, contrast = a * own.logp, np.zeros(len(own.tokens))
    for proxy, power, sign in zip(trio.proxies, (b, -c), (1, -1), strict=True):
        question = proxy.alignment.query(own.tokens, np.exp(own.logp))
        said = np.where(question.aligned, np.log(proxy.probability(question) + floor), own.logp)
        score, contrast = score + power * said, contrast + sign * said
    wanted = np.exp(score - score.max())
    wanted *= (1 - own.rest) / wanted.sum()
    np.testing.assert_allclose(np.exp(here.logp), wanted, rtol=1e-6, atol=1e-15)
    np.testing.assert_allclose(here.contrast, contrast, atol=1e-9)


@pytest.mark.parametrize("method", [Method.CAPT, Method.EXPERT_LED])
@pytest.mark.parametrize("alphas", [(), (0.7,)])
@pytest.mark.parametrize("plausibility", [1.0, 0.6])
def test_a_token_that_is_alone_has_the_same_bits_whether_the_others_are_asked_or_not(
    method: Method, alphas: tuple[float, ...], plausibility: float
) -> None:
    options = GenerateOptions(
        method=method, combine=CombineOptions(alphas=alphas, plausibility=plausibility)
    )
    models = {"target": FakeModel(TARGET, 1), "expert": FakeModel(PROXY, 2)}
    trio = assembly({**models, "base": FakeModel(PROXY, 3)}).build(options)
    random, alone = np.random.default_rng(0), 0
    trio.start(turn(trio))
    for token in range(2, 40):
        shares = random.random(len(trio.weights))
        trio.set_weights(shares / shares.sum())
        found, asked = trio.certain(), trio.distribution()
        assert (found is not None) == (len(asked.candidates.tokens) == 1)
        if found is not None:
            alone += 1
            np.testing.assert_array_equal(found.logp, asked.logp)
            np.testing.assert_array_equal(found.members, asked.members)
            assert (
                np.isnan(found.contrast).all()
                and found.proxies_skipped
                and not asked.proxies_skipped
            )
            for other in (0, 1, 99):
                assert found.token_logp(other) == asked.token_logp(other)
        trio.advance(token)
    assert alone > 5


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 1.0, 2.0])
def test_one_vocabulary_is_proxy_tuning_to_the_letter(alpha: float) -> None:
    """Over every token, against the pure function of the published method."""
    models = [FakeModel(TARGET, seed, scale=1.5) for seed in (1, 2, 3)]
    trio = make_trio(*models, CombineOptions(alphas=(alpha,), plausibility=0.0))
    trio.start(turn(trio))
    for _ in range(20):
        wanted = proxy_tuning(*(model.logits(trio.tokens) for model in models), alpha=alpha)
        np.testing.assert_allclose(everything(trio), wanted.logp, atol=2e-5)
        trio.advance(best(wanted))


def test_a_mixture_mixes_its_products_and_each_token_tells_how_well_each_did() -> None:
    trio = toy()
    trio.start(turn(trio))
    weights = np.random.default_rng(0).dirichlet(np.ones(len(trio.exponents)))
    trio.set_weights(weights)
    here = trio.distribution()
    singles = []
    for powers in trio.exponents:
        one = toy(CombineOptions(powers=powers))
        one.start(turn(one))
        singles.append(one.distribution().logp)
    np.testing.assert_allclose(here.members, singles, rtol=1e-9)
    np.testing.assert_allclose(np.exp(here.logp), weights @ np.exp(singles), rtol=1e-9)
    token = int(here.candidates.tokens[3])
    np.testing.assert_array_equal(here.gains(token), here.members[:, 3])
    outside = np.setdiff1d(np.arange(len(TARGET)), here.candidates.tokens)
    assert len(outside) and not here.gains(int(outside[0])).any()


def pure(method: Method, models: dict[str, FakeModel]) -> Callable[..., Choices]:
    """The published algorithm, straight from its file."""
    strings = {
        role: TokenStrings(model.vocabulary, model.tokenize) for role, model in models.items()
    }
    made: PaperCapt | Unite
    if method is Method.PROXY_TUNING:
        return proxy_tuning
    if method is Method.CAPT_PAPER:
        made = PaperCapt(strings["target"], strings["expert"], strings["base"])
    elif method is Method.UNITE:
        made = Unite(strings["target"], strings["expert"])
    else:
        return contrastive
    return made.generating


def fakes(method: Method) -> dict[str, FakeModel]:
    proxy = TARGET if method is Method.PROXY_TUNING else PROXY
    kinds = {"target": TARGET, "expert": proxy, "base": proxy}
    return {
        role: FakeModel(vocabulary, seed, scale=2.0)
        for seed, (role, vocabulary) in enumerate(kinds.items(), 1)
    }


@pytest.mark.parametrize("method", PUBLISHED)
def test_a_published_answer_is_that_of_its_pure_function_stepped_by_hand(method: Method) -> None:
    """Every model reads prompt and answer afresh at every step, as the published code does."""
    models = fakes(method)
    trio = assembly(fakes(method)).build(GenerateOptions(method))
    trio.start(turn(trio, b"abc the card"))
    steps = list(walk(trio, GenerateOptions(method, max_tokens=20)))

    choose = pure(method, models)
    prompts = turn(trio, b"abc the card")
    leading, *others = (models[each.role] for each in trio.models)
    tokens = list(prompts[trio.leader.role].tokens)
    for step in steps:
        answer = leading.vocabulary.text(tokens[len(prompts[trio.leader.role].tokens) :])
        rows = [leading.logits(tokens)]
        for each, model in zip(trio.proxies, others, strict=True):
            own = list(prompts[each.cache.role].tokens)
            same = method is Method.PROXY_TUNING or method is Method.CONTRASTIVE
            start = len(prompts[trio.leader.role].tokens)
            more = tokens[start:] if same else text_tokenizer(model).encode(answer, start=True)
            rows.append(model.logits([*own, *more]))
        made = choose(*rows)
        assert step.token == best(made)
        assert step.logp == pytest.approx(float(made.logp.max()), abs=1e-5)
        tokens.append(step.token)
    assert len(steps) == 20 and len({step.token for step in steps}) > 5


@pytest.mark.parametrize("method", PUBLISHED)
def test_the_forms_for_scoring_give_every_token_its_share(method: Method) -> None:
    """All tokens sum to 1, and all continuations of two tokens do."""
    trio = assembly(fakes(method)).build(GenerateOptions(method), scoring=True)
    total, count = 0.0, len(trio.leader.model.vocabulary)
    for first in range(count):
        trio.start(turn(trio, b"ab"))
        before = everything(trio)
        assert np.exp(before).sum() == pytest.approx(1.0, abs=1e-5)
        assert np.isfinite(before).all()
        trio.advance(first)
        total += float(np.exp(before[first] + everything(trio)).sum())
    assert total == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("method", [Method.CAPT_PAPER, Method.UNITE, Method.CONTRASTIVE])
def test_what_a_published_method_does_not_look_at_cannot_come_when_generating(
    method: Method,
) -> None:
    trio = assembly(fakes(method)).build(GenerateOptions(method))
    trio.start(turn(trio))
    here = trio.distribution()
    logp = everything(trio)
    inside = np.isin(np.arange(len(logp)), here.candidates.tokens)
    assert (logp[~inside] == -np.inf).all() and np.isfinite(logp[inside]).all()
    assert here.candidates.rest == pytest.approx(
        1 - softmax(np.array(here.row))[np.unique(here.candidates.tokens)].sum(), abs=1e-6
    )
