"""Weights of the models in words."""

from __future__ import annotations

import pytest

from capt_local.report.answers import bars, in_words, name


@pytest.mark.parametrize(
    ("powers", "words"),
    [
        ((1.0,), "target"),
        ((1.0, 0.0, 0.0), "target"),
        ((0.0, 1.0, 0.0), "expert"),
        ((1.0, 0.5, 0.5), "alpha 0.5"),
        ((1.0, 0.5, 0.5, 1.0, 1.0), "alpha 0.5, 1"),
        ((0.25, 1.0, 0.25), "0.25 T + 1 E - 0.25 B"),
        ((0.5, 0.5, 0.0), "0.5 T + 0.5 E"),
        ((0.0, 1.0, 0.5), "1 E - 0.5 B"),
        ((0.5, 0.5, 0.25, 0.5, 0.0), "0.5 T + 0.5 E1 - 0.25 B1 + 0.5 E2"),
    ],
)
def test_a_combination_has_a_name(powers: tuple[float, ...], words: str) -> None:
    assert name(powers) == words


def test_small_shares_are_left_out_and_the_heaviest_comes_first() -> None:
    mixed = (((1.0, 0.0, 0.0), 0.3), ((1.0, 0.5, 0.5), 0.699), ((0.0, 1.0, 0.0), 0.001))
    assert in_words(mixed) == "alpha 0.5 (70 %), target (30 %)"
    assert in_words((((1.0, 0.5, 0.5), 1.0),)) == "alpha 0.5"
    assert in_words(()) == ""


def test_fixed_weights_say_so() -> None:
    fixed = bars((((1.0, 0.5, 0.5), 1.0),))
    assert fixed is not None and fixed.title == "Weights, fixed"
    assert bars(()) is None
