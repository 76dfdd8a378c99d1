"""The formulas against their textbook forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.decoding.combine import (
    Candidates,
    Products,
    mixture,
    plausible,
    products,
)
from tests.fakes import softmax

LOGITS = st.lists(st.floats(-12, 12, width=32), min_size=2, max_size=12).map(
    lambda values: np.array(values, np.float32)
)
LIMITS = st.one_of(st.sampled_from([0.0, 1e-5, 1e-2, 1.0]), st.floats(0, 1))


def opinions(own: Candidates, seed: int, proxies: int) -> np.ndarray:
    """Log-probabilities of the candidates under some proxies."""
    return np.random.default_rng(seed).normal(size=(proxies, len(own.tokens))) * 3 - 5


@given(LOGITS, LIMITS)
def test_plausible_tokens(logits: np.ndarray, limit: float) -> None:
    made = plausible(logits, limit)
    wanted = softmax(logits)
    kept = np.isin(np.arange(len(logits)), made.tokens)
    assert (np.diff(made.tokens) > 0).all()
    assert (wanted[kept] >= limit * wanted.max() * (1 - 1e-4)).all()
    assert (wanted[~kept] <= limit * wanted.max() * (1 + 1e-4)).all()
    np.testing.assert_allclose(np.exp(made.logp), wanted[kept], rtol=1e-5)
    np.testing.assert_allclose(made.rest, wanted[~kept].sum(), atol=1e-6)
    np.testing.assert_allclose(np.exp(logits - made.log_total), wanted, rtol=1e-5)


@given(LOGITS, LIMITS, st.integers(0, 99), st.integers(1, 2), st.data())
def test_every_product_is_its_formula_and_sums_to_what_the_target_gives(
    logits: np.ndarray, limit: float, seed: int, pairs: int, data: st.DataObject
) -> None:
    own = plausible(logits, limit)
    said = opinions(own, seed, 2 * pairs)
    powers = np.array(
        data.draw(
            st.lists(
                st.lists(st.floats(-3, 3), min_size=1 + 2 * pairs, max_size=1 + 2 * pairs),
                min_size=1,
                max_size=4,
            )
        )
    )
    got = products(own, said, powers)
    np.testing.assert_allclose(got.shares, np.exp(got.logp), rtol=1e-9)
    share = np.exp(own.logp).sum()
    for row, exponents in zip(got.logp, powers, strict=True):
        score = exponents[0] * own.logp
        for power, each in zip(exponents[1:], said, strict=True):
            score = score + power * each
        wanted = np.exp(score - score.max())
        np.testing.assert_allclose(np.exp(row), wanted / wanted.sum() * share, rtol=1e-6)
        assert np.exp(row).sum() + own.rest == pytest.approx(1.0, abs=1e-6)


def test_a_mixture_of_what_is_next_to_impossible_keeps_its_logarithm() -> None:
    logp = np.array([[-900.0, -1.0], [-901.0, -2.0], [-1.0, -3.0]])
    got = mixture(Products(logp, np.exp(logp)), np.array([0.25, 0.75, 0.0]))
    wanted = np.logaddexp(logp[0] + np.log(0.25), logp[1] + np.log(0.75))
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
