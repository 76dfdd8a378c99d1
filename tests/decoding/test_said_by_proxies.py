"""What expert and base give to the token that was said, for those who want to see why."""

from __future__ import annotations

import pytest

from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.options import CombineOptions, GenerateOptions
from capt_local.decoding.step import Step
from tests.decoding.trios import toy, turn, walk


def walked(trio: Ensemble, **options: int) -> list[Step]:
    trio.start(turn(trio))
    return list(walk(trio, GenerateOptions(max_tokens=6, **options)))


def test_their_difference_is_the_contrast() -> None:
    steps = walked(toy(CombineOptions(alphas=(1.0,), plausibility=0.0)), top=2)
    told = [step for step in steps if step.expert_logp is not None]
    assert told
    for step in told:
        assert step.base_logp is not None
        assert step.expert_logp - step.base_logp == pytest.approx(step.contrast)
        assert step.expert_logp < 1e-6 and step.base_logp < 1e-6


def test_they_are_told_with_the_candidates_alone() -> None:
    assert all(step.expert_logp is None for step in walked(toy(CombineOptions(alphas=(1.0,)))))
    target = Ensemble(toy().leader)
    assert all(step.base_logp is None for step in walked(target, top=2))
