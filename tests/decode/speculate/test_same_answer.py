"""Whatever drafts and gate do, the answer is the one that comes step by step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.decode.options import (
    AlignOptions,
    CombineOptions,
    GenerateOptions,
    Method,
    SampleOptions,
    Speed,
)
from capt_local.align.kinds import Align
from tests.decode.speculate.answers import Habit, at_every_speed, lettered
from tests.fakes import FakeModel

WORDS = st.lists(
    st.text(alphabet="abc ", min_size=2, max_size=4), min_size=2, max_size=12, unique=True
)
SEEDS = st.integers(0, 10**6)
ALPHAS = st.sampled_from([(), (0.0,), (0.3,), (1.0,)])
PLAUSIBLE = st.sampled_from([1e-5, 1e-2, 0.3, 1.0])
SAMPLES = st.sampled_from(
    [
        SampleOptions(),
        SampleOptions(repeat_penalty=1.3, repeat_window=8),
        SampleOptions(temperature=1.0, seed=4),
        SampleOptions(temperature=0.7, top_k=5, top_p=0.9, min_p=0.01, seed=11),
    ]
)
FOUND: dict[str, int] = {"accepted": 0, "gated": 0, "rejected": 0}


def pair(
    target: list[str], proxy: list[str], seed: int, pairs: int = 1, **kinds: object
) -> Mapping[str, FakeModel]:
    """A target and its pairs of expert and base, all made anew."""
    own, other = lettered(target), lettered(proxy)
    models = {"target": Habit(own, seed, **kinds)}
    for place in range(pairs):
        end = f"-{place + 1}" if place else ""
        models[f"expert{end}"] = Habit(other, seed + 10 * place + 1, **kinds)
        models[f"base{end}"] = Habit(other, seed + 10 * place + 2, **kinds)
    return models


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS, SEEDS, ALPHAS, PLAUSIBLE, SAMPLES, st.booleans(), st.booleans(), st.data())
def test_answers_are_the_same_token_by_token(
    target: list[str],
    proxy: list[str],
    seed: int,
    alphas: tuple[float, ...],
    plausibility: float,
    sample: SampleOptions,
    healing: bool,
    long_tokens: bool,
    data: st.DataObject,
) -> None:
    options = GenerateOptions(
        max_tokens=data.draw(st.sampled_from([1, 2, 7, 30])),
        stop=data.draw(st.sampled_from([(), ("ab",), ("c a", "bbb")])),
        top=data.draw(st.sampled_from([0, 0, 3])),
        align=AlignOptions(healing=healing, long_tokens=long_tokens),
        combine=CombineOptions(alphas=alphas, plausibility=plausibility),
        sample=sample,
    )
    kinds = {
        "sure": data.draw(st.sampled_from([0.0, 0.4, 0.9])),
        "end_logit": data.draw(st.sampled_from([-30.0, 3.0])),
        "memory": data.draw(st.sampled_from([1, 2, 3])),
    }
    pairs = data.draw(st.sampled_from([1, 1, 2]))
    text = data.draw(st.sampled_from([b"", b"abc ab", b"ab cab cab ab cab c"]))
    found = at_every_speed(lambda: pair(target, proxy, seed, pairs, **kinds), options, text)
    for speed, told in found.items():
        tally = told.generation.tally
        assert not (options.top and tally.gated)
        if speed is not Speed.EXACT_STEPS:
            FOUND["accepted"] += tally.accepted
            FOUND["rejected"] += tally.drafted - tally.accepted
            FOUND["gated"] += tally.gated
