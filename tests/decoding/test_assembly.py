"""Which models take which places, and which alignment joins them."""

from __future__ import annotations

import numpy as np
import pytest

from capt_local.decoding.options import CombineOptions, GenerateOptions, Method
from capt_local.errors import UsageError
from tests.decoding.trios import PROXY, TARGET, assembly, turn
from tests.fakes import FakeModel, make_vocabulary

OTHER = make_vocabulary(["car", "ab", " a"])
KINDS = {"target": (TARGET, 1), "expert": (PROXY, 2), "base": (PROXY, 3)}
MORE = {"expert-2": (OTHER, 4), "base-2": (OTHER, 5)}


def models(*roles: str) -> dict[str, FakeModel]:
    kinds = KINDS | MORE
    return {role: FakeModel(*kinds[role]) for role in roles or KINDS}


@pytest.mark.parametrize(
    ("method", "roles"),
    [
        *((Method(role), [role]) for role in KINDS),
        *((each, ["target", "expert"]) for each in (Method.UNITE, Method.SAFE, Method.DUO)),
        *((each, list(KINDS)) for each in (Method.CAPT, Method.CAPT_PAPER, Method.PROXY_TUNING)),
        (Method.EXPERT_LED, ["expert", "target", "base"]),
        (Method.CONTRASTIVE, ["expert", "base"]),
    ],
)
def test_every_method_has_its_models_and_one_that_leads(method: Method, roles: list[str]) -> None:
    one = {role: FakeModel(TARGET, seed) for role, (_, seed) in KINDS.items()}
    made = assembly(one).build(GenerateOptions(method))
    assert [each.role for each in made.models] == roles


@pytest.mark.parametrize(
    ("method", "roles", "missing"),
    [
        (Method.CAPT, ["target"], "expert"),
        (Method.TARGET, ["expert"], "target"),
        (Method.UNITE, ["target", "base"], "expert"),
        (Method.CONTRASTIVE, ["target", "expert"], "base"),
    ],
)
def test_a_model_that_is_not_there_is_named(method: Method, roles: list[str], missing: str) -> None:
    with pytest.raises(UsageError, match=f"There is no {missing} here"):
        assembly(models(*roles)).build(GenerateOptions(method))


def test_proxy_tuning_needs_one_vocabulary_and_contrastive_two_alike() -> None:
    made = assembly(models())
    with pytest.raises(UsageError, match=r"proxy-tuning needs target and expert and base to have"):
        made.build(GenerateOptions(Method.PROXY_TUNING))
    made.build(GenerateOptions(Method.CONTRASTIVE))
    unlike = models() | {"base": FakeModel(OTHER, 3)}
    with pytest.raises(UsageError, match=r"contrastive needs expert and base to have"):
        assembly(unlike).build(GenerateOptions(Method.CONTRASTIVE))


def test_proxies_of_one_vocabulary_share_a_table_and_keep_it() -> None:
    made = assembly(models(*KINDS, *MORE))
    first = made.build(GenerateOptions())
    expert, base, expert_2, base_2 = first.proxies
    assert expert.alignment is base.alignment and expert_2.alignment is base_2.alignment
    assert expert.alignment is not expert_2.alignment
    again = made.build(GenerateOptions(combine=CombineOptions(alphas=(1.0,))))
    assert [each.alignment for each in again.proxies] == [each.alignment for each in first.proxies]


def test_two_pairs_have_weights_of_their_own() -> None:
    made = assembly(models(*KINDS, *MORE))
    assert made.pairs == (("expert", "base"), ("expert-2", "base-2"))
    combine = CombineOptions(powers=(0.5, 1.0, 0.75, 0.25, 0.5), plausibility=0.0)
    trio = made.build(GenerateOptions(combine=combine))
    assert [each.role for each in trio.models] == [*KINDS, *MORE]
    trio.start(turn(trio))
    here = trio.distribution()
    assert here.proxy_logprobs.shape == (4, len(TARGET))
    score = 0.5 * here.candidates.logp + np.array([1.0, -0.75, 0.25, -0.5]) @ here.proxy_logprobs
    wanted = np.exp(score - score.max())
    np.testing.assert_allclose(np.exp(here.logp), wanted / wanted.sum(), rtol=1e-9)
    with pytest.raises(UsageError, match="takes 5 numbers for 2 pairs"):
        made.build(GenerateOptions(combine=CombineOptions(powers=(1.0, 1.0, 1.0))))
