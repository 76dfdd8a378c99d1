"""The formulas against their textbook forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.decode.combine import combine, contrast, plausible, tilt
from capt_local.decode.evidence import Evidence
from tests.fakes import softmax

LOGITS = st.lists(st.floats(-12, 12, width=32), min_size=2, max_size=12).map(
    lambda values: np.array(values, np.float32)
)


@given(LOGITS, st.floats(0, 1))
def test_plausible_tokens(logits: np.ndarray, limit: float) -> None:
    made = plausible(logits, limit)
    wanted = softmax(logits)
    kept = np.isin(np.arange(len(logits)), made.tokens)
    assert (wanted[kept] >= limit * wanted.max() * (1 - 1e-4)).all()
    assert (wanted[~kept] <= limit * wanted.max() * (1 + 1e-4)).all()
    np.testing.assert_allclose(np.exp(made.logp), wanted[kept], rtol=1e-5)
    np.testing.assert_allclose(made.rest, wanted[~kept].sum(), atol=1e-6)


@given(LOGITS, st.integers(0, 99), st.lists(st.floats(-2, 2), min_size=1, max_size=4), st.data())
def test_mixture_is_the_sum_of_its_parts_and_normalised(
    logits: np.ndarray, seed: int, alphas: list[float], data: st.DataObject
) -> None:
    own = plausible(logits, data.draw(st.sampled_from([0.0, 1e-3])))
    rng = np.random.default_rng(seed)
    shift = rng.normal(size=len(own.tokens)) * 3
    weights = rng.dirichlet(np.ones(len(alphas)))
    full = softmax(logits)
    padded = np.zeros(len(logits))
    padded[own.tokens] = shift
    wanted = np.zeros(len(logits))
    for alpha, weight in zip(alphas, weights, strict=True):
        part = full * np.exp(alpha * padded)
        wanted += weight * part / part.sum()
    got = np.exp(combine(own, shift, alphas, weights))
    np.testing.assert_allclose(got, wanted[own.tokens], rtol=1e-4, atol=1e-9)
    rest = own.rest * (weights / tilt(own, shift, alphas)[1]).sum()
    np.testing.assert_allclose(got.sum() + rest, 1.0, rtol=1e-6)


def test_no_contrast_is_the_target() -> None:
    own = plausible(np.array([0.0, 1.0, 2.0], np.float32), 0.0)
    np.testing.assert_array_equal(combine(own, np.zeros(3), [0.0, 1.0], np.full(2, 0.5)), own.logp)
    shift = np.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(combine(own, shift, [0.0], np.ones(1)), own.logp, atol=1e-12)


def test_contrast_is_zero_where_a_token_has_no_event() -> None:
    flags = np.array([True, False])
    got = contrast(np.array([0.5, 0.5]), np.array([0.25, 0.25]), flags, 1e-9)
    np.testing.assert_allclose(got, [np.log(2), 0.0], rtol=1e-6)
    assert contrast(np.zeros(1), np.zeros(1), np.array([True]), 1e-5)[0] == 0.0
    rare = contrast(np.array([1e-3]), np.array([1e-8]), np.array([True]), 1e-5)[0]
    assert rare == pytest.approx(np.log(1.01e-3 / 1.001e-5))


@pytest.mark.parametrize("forgetting", [1.0, 0.98])
def test_evidence_finds_the_alpha_that_wrote_the_text(forgetting: float) -> None:
    rng = np.random.default_rng(0)
    grid = (0.0, 0.5, 1.0)
    evidence = Evidence(grid, forgetting)
    for _ in range(400):
        own = plausible(rng.normal(size=8).astype(np.float32), 0.0)
        shift = rng.normal(size=8)
        shares = np.exp(combine(own, shift, [1.0], np.ones(1)))
        evidence.observe(own, shift, int(rng.choice(8, p=shares / shares.sum())))
    assert evidence.seen == 400
    assert grid[int(evidence.weights.argmax())] == 1.0


@given(st.integers(0, 2**16))
def test_mixture_loses_at_most_log_n_to_the_best_alpha(seed: int) -> None:
    """The bound of Bayesian model averaging, over any text (no forgetting)."""
    rng = np.random.default_rng(seed)
    grid = (0.0, 0.25, 0.5, 1.0, 1.25)
    evidence = Evidence(grid, forgetting=1.0)
    mixed, single = 0.0, np.zeros(len(grid))
    for _ in range(40):
        own = plausible(rng.normal(size=6).astype(np.float32) * 2, 1e-2)
        shift = rng.normal(size=len(own.tokens)) * 2
        place = int(rng.integers(len(own.tokens)))
        mixed -= combine(own, shift, grid, evidence.weights)[place]
        single -= [combine(own, shift, [alpha], np.ones(1))[place] for alpha in grid]
        evidence.observe(own, shift, int(own.tokens[place]))
    assert mixed <= single.min() + np.log(len(grid)) + 1e-6
