"""Known text in one pass against the same text step by step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.options import CombineOptions, GenerateOptions, Method
from capt_local.decoding.prompt_weights import Evidence
from capt_local.decoding.scoring import score_paths, score_text
from tests.decoding.stepwise import path_logps, text_nats
from tests.decoding.trios import PROXY, TARGET, assembly, make_trio, toy, turn
from tests.fakes import FakeModel, text_tokenizer

TEXT = st.text(alphabet="abcdiar the\né", min_size=1, max_size=60).map(str.encode)


def tokenizers(trio: Ensemble) -> dict:
    return {each.role: text_tokenizer(each.model) for each in trio.models}


@settings(deadline=None, max_examples=40)
@given(
    TEXT,
    st.booleans(),
    st.sampled_from([4, 7, 16]),
    st.sampled_from([b"", b" "]),
    st.booleans(),
)
def test_one_pass_gives_what_steps_give(
    text: bytes, can_rewind: bool, rows: int, lead: bytes, weighs: bool
) -> None:
    """In texts whose proxy tokens change while they grow; windows included."""
    options = CombineOptions() if weighs else CombineOptions(alphas=(1.0,))

    def trio(can_rewind: bool) -> Ensemble:
        return make_trio(
            FakeModel(TARGET, 1, max_rows=rows, lead=lead, limit=64),
            *(
                FakeModel(PROXY, seed, can_rewind=can_rewind, max_rows=rows, limit=70)
                for seed in (2, 3)
            ),
            options,
        )

    one, other = trio(can_rewind), trio(True)
    count = len(one.exponents)
    got = score_text(one, tokenizers(one), text * 3, Evidence(count) if weighs else None)
    nats, windows = text_nats(
        other, tokenizers(other), text * 3, Evidence(count) if weighs else None
    )
    assert got.nats == pytest.approx(nats, rel=1e-6)
    assert got.windows == windows


@pytest.mark.parametrize("method", list(Method))
def test_every_method_is_scored_as_step_by_step(method: Method) -> None:
    own = PROXY if method is Method.PROXY_TUNING else TARGET
    models = {
        role: FakeModel(vocabulary, seed)
        for role, vocabulary, seed in (
            ("target", own, 1),
            ("expert", PROXY, 2),
            ("base", PROXY, 3),
        )
    }
    text = b"abc the cardiac card\n\nabcab the abc" * 2
    trio = assembly(models).build(GenerateOptions(method=method), scoring=True)
    names = {role: text_tokenizer(model) for role, model in models.items()}
    evidence = Evidence(len(trio.exponents)) if trio.mixes else None
    got = score_text(trio, names, text, evidence)
    evidence = Evidence(len(trio.exponents)) if trio.mixes else None
    assert got.nats == pytest.approx(text_nats(trio, names, text, evidence)[0], rel=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.lists(TEXT, min_size=1, max_size=5, unique=True), st.booleans())
def test_paths_that_part_and_meet_are_scored_as_step_by_step(
    texts: list[bytes], weighs: bool
) -> None:
    options = CombineOptions() if weighs else CombineOptions(alphas=(0.5,))
    one, other = toy(options), toy(options)
    encode = text_tokenizer(FakeModel(TARGET, 1)).encode
    paths = [tuple(encode(text[:12], start=False)) for text in texts]
    got = score_paths(one, turn(one), paths, end=False)
    wanted = path_logps(other, turn(other), paths)
    for ours, theirs in zip(got, wanted, strict=True):
        assert [each.logp for each in ours] == pytest.approx(theirs, rel=1e-5)


def test_known_text_goes_through_the_models_in_batches() -> None:
    """Each token of the target once; of a proxy more, since these vocabularies often disagree."""
    trio = toy(CombineOptions(alphas=(1.0,)), max_rows=16)
    text = b"abc the cardiac card abcab the abc" * 5
    score = score_text(trio, tokenizers(trio), text)
    assert trio.leader.decoded == score.tokens
    assert trio.leader.passes <= math.ceil(score.tokens / 16) + 1
    for proxy in trio.proxies:
        assert proxy.cache.passes < 0.7 * score.tokens
        whole = text_tokenizer(proxy.cache.model).encode(text, start=True)
        assert proxy.cache.decoded < 5 * len(whole)
