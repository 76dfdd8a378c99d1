"""The products over the expert's tokens: led by the expert, followed by target and base."""

from __future__ import annotations

import numpy as np
import pytest

from capt_local.decoding.ensemble import EnsembleBuilder
from capt_local.decoding.options import CombineOptions, GenerateOptions, Method
from capt_local.decoding.proxy import LogitsCache
from capt_local.decoding.scoring import score_text
from capt_local.tokenization.vocabulary import Vocabulary
from tests.decoding.trios import PROXY, TARGET
from tests.fakes import FakeModel, text_tokenizer

TEXT = b"card the abc cardiac ab"


def nats(method: Method, combine: CombineOptions, *vocabularies: Vocabulary) -> float:
    models = {
        role: FakeModel(vocabulary, seed)
        for seed, (role, vocabulary) in enumerate(
            zip(("target", "expert", "base"), vocabularies, strict=True), start=1
        )
    }
    tokenizers = {role: text_tokenizer(model) for role, model in models.items()}
    cached = {role: LogitsCache(role, model) for role, model in models.items()}
    assembly = EnsembleBuilder(cached, tokenizers, lambda role: f"no {role}")
    trio = assembly.build(GenerateOptions(method=method, combine=combine), scoring=True)
    return score_text(trio, tokenizers, TEXT).nats


def test_the_weight_of_the_expert_alone_is_the_expert_in_its_own_tokens() -> None:
    alone = nats(Method.EXPERT, CombineOptions(plausibility=0.0), TARGET, PROXY, PROXY)
    fixed = CombineOptions(powers=(0.0, 1.0, 0.0), plausibility=0.0)
    assert nats(Method.EXPERT_LED, fixed, TARGET, PROXY, PROXY) == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("powers", [(1.0, 1.0, 1.0), (0.25, 1.0, 0.25), (0.5, 0.75, 0.5)])
def test_with_one_vocabulary_it_does_not_matter_who_leads(powers: tuple[float, ...]) -> None:
    fixed = CombineOptions(powers=powers, plausibility=0.0)
    led, capt = (
        nats(method, fixed, TARGET, TARGET, TARGET) for method in (Method.EXPERT_LED, Method.CAPT)
    )
    assert led == pytest.approx(capt, rel=1e-6)


def test_the_target_has_a_say_over_other_tokens() -> None:
    alone = CombineOptions(powers=(0.0, 1.0, 0.0), plausibility=0.0)
    helped = CombineOptions(powers=(0.5, 0.5, 0.0), plausibility=0.0)
    both = [nats(Method.EXPERT_LED, how, TARGET, PROXY, PROXY) for how in (alone, helped)]
    assert np.isfinite(both).all() and both[0] != both[1]
