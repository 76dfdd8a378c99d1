"""Filters and draws on distributions written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from capt_local.decoding.options import SampleOptions
from capt_local.decoding.sampling import choose, filtered, penalised

SHARES = np.array([0.5, 0.05, 0.3, 0.15])
LOGP = np.log(SHARES)
TOKENS = np.array([10, 11, 12, 13], dtype=np.int32)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (SampleOptions(temperature=1.0), [0, 2, 3, 1]),
        (SampleOptions(temperature=1.0, top_k=2), [0, 2]),
        (SampleOptions(temperature=1.0, top_p=0.79), [0, 2]),
        (SampleOptions(temperature=1.0, top_p=0.81), [0, 2, 3]),
        (SampleOptions(temperature=1.0, top_p=1e-9), [0]),
        (SampleOptions(temperature=1.0, min_p=0.3), [0, 2, 3]),
        (SampleOptions(temperature=1.0, top_k=3, min_p=0.5), [0, 2]),
    ],
)
def test_filters(options: SampleOptions, kept: list[int]) -> None:
    assert filtered(LOGP, options).tolist() == kept


def test_repetition_penalty_looks_back_only_so_far() -> None:
    options = SampleOptions(repeat_penalty=3.0, repeat_window=2)
    assert choose(TOKENS, LOGP, [10, 1, 2], options, rng()) == 0
    assert choose(TOKENS, LOGP, [1, 10, 2], options, rng()) == 2
    assert (penalised(TOKENS, LOGP, [10, 11, 12, 13], options) <= LOGP).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    options, source = SampleOptions(temperature=temperature), rng()
    draws = [choose(TOKENS, LOGP, [], options, source) for _ in range(4000)]
    wanted = SHARES ** (1 / temperature)
    wanted /= wanted.sum()
    counts = np.bincount(draws, minlength=4)
    chi_square = ((counts - 4000 * wanted) ** 2 / (4000 * wanted)).sum()
    assert chi_square < 16.27  # 0.1 % of three degrees of freedom
