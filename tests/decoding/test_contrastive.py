"""Contrastive decoding and proxy tuning, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.decoding.baselines import contrastive, log_softmax, proxy_tuning
from tests.fakes import softmax
from tests.published_toys import best, token_logp


def logits(*shares: float, offset: float = 5.0) -> np.ndarray:
    return (np.log(shares) + offset).astype(np.float32)


EXPERT = logits(0.60, 0.30, 0.05, 0.05)
BASE = logits(0.30, 0.60, 0.01, 0.09, offset=-2.0)


def test_the_contrast_of_the_plausible_tokens() -> None:
    made = contrastive(EXPERT, BASE)
    # At least 0.1 * 0.6: the first two. Their ratio is (0.6 / 0.3)^1.5 / (0.3 / 0.6)^0.5 = 4,
    # so that they have 0.8 and 0.2. The third, five times likelier than for the base, has nothing.
    assert made.tokens.tolist() == [0, 1]
    assert np.exp(made.logp) == pytest.approx([0.8, 0.2], rel=1e-5)
    assert best(made) == 0
    assert token_logp(made, 2, np.log(0.05)) == -np.inf


def test_scoring_leaves_the_implausible_tokens_to_the_expert() -> None:
    made = contrastive(EXPERT, BASE).sharing(EXPERT)
    # The plausible ones share 0.9.
    own = log_softmax(EXPERT)
    got = [np.exp(token_logp(made, token, own[token])) for token in range(4)]
    assert got == pytest.approx([0.72, 0.18, 0.05, 0.05], rel=1e-5)


def test_the_limit_itself_is_plausible() -> None:
    """p >= alpha * max p, not p > alpha * max p."""
    row = np.log(np.array([0.8, 0.2], np.float32))
    assert contrastive(row, row, plausibility=0.25).tokens.tolist() == [0, 1]
    assert contrastive(row, row, plausibility=0.26).tokens.tolist() == [0]


def test_proxy_tuning_by_hand() -> None:
    made = proxy_tuning(
        logits(0.5, 0.25, 0.25), logits(0.6, 0.2, 0.2, offset=1.0), logits(0.3, 0.2, 0.5)
    )
    # 0.5 * 0.6 / 0.3 = 1; 0.25 * 0.2 / 0.2 = 0.25; 0.25 * 0.2 / 0.5 = 0.1. Together 1.35.
    assert np.exp(made.logp) == pytest.approx(np.array([1.0, 0.25, 0.1]) / 1.35, rel=1e-5)
    assert made.tokens.tolist() == [0, 1, 2]


ROWS = st.integers(0, 2**32 - 1).map(
    lambda seed: (np.random.default_rng(seed).normal(size=(3, 40)) * 4).astype(np.float32)
)


@given(ROWS, st.floats(0, 3), st.floats(0.001, 1))
def test_contrastive_decoding_is_normalised(rows: np.ndarray, beta: float, limit: float) -> None:
    made = contrastive(rows[0], rows[1], beta, limit)
    assert np.exp(made.logp).sum() == pytest.approx(1.0)
    p = softmax(rows[0])
    assert (p[made.tokens] >= limit * p.max() * (1 - 1e-5)).all()
    scored = made.sharing(rows[0])
    total = sum(np.exp(token_logp(scored, token, np.log(p[token]))) for token in range(len(p)))
    assert total == pytest.approx(1.0)


@given(ROWS, st.floats(-2, 2))
def test_proxy_tuning_is_normalised_and_blind_to_offsets(rows: np.ndarray, alpha: float) -> None:
    made = proxy_tuning(*rows, alpha)
    assert np.exp(made.logp).sum() == pytest.approx(1.0)
    moved = proxy_tuning(rows[0] + 1, rows[1] - 2, rows[2] + 3, alpha)
    np.testing.assert_allclose(made.logp, moved.logp, atol=1e-4)
