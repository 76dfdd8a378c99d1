"""Weights from evidence: the bounds of Bayesian model averaging."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.decoding.combine import mixture, plausible, products
from capt_local.decoding.options import FORGETTING, GRID, CombineOptions
from capt_local.decoding.prompt_weights import Evidence

SIGNED = np.array(GRID) * (1.0, 1.0, -1.0)
TARGET_ALONE = GRID.index((1.0, 0.0, 0.0))


def losses(rng: np.random.Generator, powers: np.ndarray, length: int) -> tuple[float, np.ndarray]:
    """Nats of the mixture and of each member over a text that may be as bad as can be."""
    evidence = Evidence(len(powers), forgetting=1.0)
    mixed, single = 0.0, np.zeros(len(powers))
    for _ in range(length):
        own = plausible(rng.normal(size=7).astype(np.float32) * 2, 1e-2)
        said = rng.normal(size=(2, len(own.tokens))) * rng.choice([0.1, 2.0, 30.0])
        members = products(own, said, powers)
        place = int(rng.integers(len(own.tokens)))
        mixed -= mixture(members, evidence.weights)[place]
        single -= members.logp[:, place]
        evidence.observe(members.logp[:, place])
    return mixed, single


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(0, 60))
def test_mixture_loses_at_most_log_m_to_the_best_member(seed: int, count: int, length: int) -> None:
    """Over any text, members and target (no forgetting)."""
    rng = np.random.default_rng(seed)
    mixed, single = losses(rng, rng.normal(size=(count, 3)), length)
    assert mixed <= single.min() + np.log(count) + 1e-6


@given(st.lists(st.lists(st.floats(-60, 0), min_size=3, max_size=3), max_size=12))
def test_weights_are_the_probabilities_that_each_gave_to_the_text(rows: list[list[float]]) -> None:
    evidence = Evidence(3, forgetting=1.0)
    for row in rows:
        evidence.observe(np.array(row))
    total = np.array(rows).reshape(-1, 3).sum(axis=0)
    wanted = np.exp(total - total.max())
    np.testing.assert_allclose(evidence.weights, wanted / wanted.sum(), rtol=1e-9, atol=1e-300)
    assert evidence.seen == len(rows)


def test_forgetting_weighs_each_token_by_its_age() -> None:
    rng = np.random.default_rng(0)
    rows = -rng.exponential(size=(30, 4))
    evidence = Evidence(4)
    for row in rows:
        evidence.observe(row)
    aged = (FORGETTING ** np.arange(29, -1, -1)[:, None] * rows).sum(axis=0)
    np.testing.assert_allclose(evidence.weights, np.exp(aged) / np.exp(aged).sum(), rtol=1e-9)
    assert CombineOptions().forgetting == FORGETTING


@pytest.mark.parametrize("forgetting", [1.0, 0.98])
def test_evidence_finds_the_powers_that_wrote_the_text(forgetting: float) -> None:
    rng = np.random.default_rng(0)
    evidence = Evidence(len(GRID), forgetting)
    writer = GRID.index((0.5, 1.0, 0.5))
    for _ in range(600):
        own = plausible(rng.normal(size=8).astype(np.float32) * 2, 0.0)
        members = products(own, rng.normal(size=(2, 8)) * 2, SIGNED)
        shares = members.shares[writer]
        evidence.observe(members.logp[:, int(rng.choice(8, p=shares / shares.sum()))])
    assert int(evidence.weights.argmax()) == writer
