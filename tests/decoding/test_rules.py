"""One distribution from the rows of all models: formulas, and identities that hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.decoding.baselines import (
    Choices,
    TokenStrings,
    contrastive,
    paper_capt,
    proxy_tuning,
    unite,
)
from capt_local.decoding.combine import plausible
from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import (
    CombineOptions,
    Exponents,
    GenerateOptions,
    Method,
    SampleOptions,
)
from capt_local.decoding.scoring import score_text
from capt_local.errors import UsageError
from capt_local.tokenization import Vocabulary
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
        found, asked = [], []
        for skips, kind in ((True, found), (False, asked)):
            trio.skip_certain = skips
            here = trio.distribution()
            kind += [here.logp, here.members, [here.token_logp(other) for other in (0, 1, 99)]]
            certain = len(here.candidates.tokens) == 1
            assert here.proxies_skipped == (skips and certain)
            assert np.isnan(here.contrast).any() == here.proxies_skipped
        alone += certain
        for ours, theirs in zip(found, asked, strict=True):
            np.testing.assert_array_equal(ours, theirs)
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
    if method in (Method.PROXY_TUNING, Method.CONTRASTIVE):
        return proxy_tuning if method is Method.PROXY_TUNING else contrastive
    strings = [TokenStrings(model.vocabulary, model.tokenize) for model in models.values()]
    return partial(unite, strings[:2]) if method is Method.UNITE else partial(paper_capt, strings)


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


# Identities of the method that hold exactly.

SAMPLED = GenerateOptions(max_tokens=40, sample=SampleOptions(temperature=1.0, seed=5))
GREEDY = GenerateOptions(max_tokens=40)


def answer(trio: Ensemble, options: GenerateOptions) -> list[int]:
    return [step.token for step in walk(trio, options)]


def alone(options: GenerateOptions) -> list[int]:
    return answer(Ensemble(toy().leader), options)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED])
def test_alpha_zero_is_the_target(options: GenerateOptions) -> None:
    assert answer(toy(CombineOptions(alphas=(0.0,))), options) == alone(options)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED])
@pytest.mark.parametrize("powers", [(1.0, 1.0, 1.0), (1.0, 2.5, 2.5), (1.0, -1.0, -1.0)])
def test_expert_equal_to_base_is_the_target(options: GenerateOptions, powers: Exponents) -> None:
    models = [FakeModel(TARGET, 1), FakeModel(PROXY, 2), FakeModel(PROXY, 2)]
    assert answer(make_trio(*models, CombineOptions(powers=powers)), options) == alone(options)


def test_the_contrast_changes_the_answer_and_is_recorded() -> None:
    trio = toy(CombineOptions(alphas=(1.0,)))
    steps = list(walk(trio, GenerateOptions(max_tokens=40, top=3)))
    assert [step.token for step in steps] != alone(GREEDY)
    changed = [step for step in steps if step.changed]
    assert changed and all(step.target_rank > 0 for step in changed)
    for step in steps:
        assert step.top[0].logp >= step.top[-1].logp
        assert step.target_top[0] == step.target_choice
        assert len(step.expert_top) == len(step.base_top) == 3


# The products over the expert's tokens, and those without a base.


def nats(method: Method, powers: Exponents, *vocabularies: Vocabulary) -> float:
    """Of a text, over all tokens."""
    roles = ("target", "expert", "base")
    models = {
        role: FakeModel(each, seed)
        for seed, (role, each) in enumerate(zip(roles, vocabularies, strict=True), start=1)
    }
    combine = CombineOptions(powers=powers, plausibility=0.0)
    trio = assembly(models).build(GenerateOptions(method=method, combine=combine), scoring=True)
    tokenizers = {role: text_tokenizer(model) for role, model in models.items()}
    return score_text(trio, tokenizers, b"card the abc cardiac ab").nats


def test_led_by_the_expert_alone_is_the_expert_in_its_own_tokens() -> None:
    mixed = (TARGET, PROXY, PROXY)
    expert = nats(Method.EXPERT, (), *mixed)
    led = nats(Method.EXPERT_LED, (0.0, 1.0, 0.0), *mixed)
    assert led == pytest.approx(expert, rel=1e-9)
    assert nats(Method.EXPERT_LED, (0.5, 0.5, 0.0), *mixed) != led  # the target has a say


@pytest.mark.parametrize("powers", [(1.0, 1.0, 1.0), (0.25, 1.0, 0.25), (0.5, 0.75, 0.5)])
def test_with_one_vocabulary_it_does_not_matter_who_leads(powers: Exponents) -> None:
    led, capt = (nats(each, powers, *[TARGET] * 3) for each in (Method.EXPERT_LED, Method.CAPT))
    assert led == pytest.approx(capt, rel=1e-6)


def duo(options: CombineOptions | None = None, expert: FakeModel | None = None) -> Ensemble:
    models = {"target": FakeModel(TARGET, 1), "expert": expert or FakeModel(PROXY, 2)}
    how = GenerateOptions(method=Method.DUO, combine=options or CombineOptions())
    return assembly(models).build(how)


def test_a_duo_without_the_expert_is_the_target_and_the_other_way_round() -> None:
    same = FakeModel(TARGET, 7)
    for alpha, model in ((0.0, FakeModel(TARGET, 1)), (1.0, same)):
        ensemble = duo(CombineOptions(alphas=(alpha,), plausibility=0.0), same)
        ensemble.start(turn(ensemble))
        row = softmax(model.logits(ensemble.tokens))
        found = np.exp(everything(ensemble))
        np.testing.assert_allclose(found[2:], row[2:], rtol=1e-3, atol=2e-6)


def test_a_duo_mixes_by_the_evidence_and_runs_no_base() -> None:
    ensemble = duo()
    assert [each.role for each in ensemble.models] == ["target", "expert"] and ensemble.mixes
    options = GenerateOptions(method=Method.DUO, max_tokens=5, top=2)
    generation = Generation(ensemble, turn(ensemble), options)
    steps = list(generation)
    assert generation.evidence_tokens > 0
    assert all(step.expert_logp is not None and step.base_logp is None for step in steps)
    assert np.exp(everything(ensemble)).sum() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    "options", [CombineOptions(powers=(1.0, 1.0, 0.5)), CombineOptions(alphas=(1.0, 0.5))]
)
def test_weights_of_a_base_have_no_place_in_a_duo(options: CombineOptions) -> None:
    with pytest.raises(UsageError, match=r"--(weights|alpha) takes"):
        duo(options)
