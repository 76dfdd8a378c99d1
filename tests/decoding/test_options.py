"""The parameters of an answer check themselves, and say which combinations are mixed."""

from __future__ import annotations

import math

import pytest

from capt_local.decoding.options import ANSWER_GRID, GRID, CombineOptions
from capt_local.errors import UsageError


def test_the_grid_is_mixed_where_nothing_is_fixed() -> None:
    options = CombineOptions()
    assert options.mixes and options.rows(1) == GRID
    assert options.rows(1, answer=True) == ANSWER_GRID
    assert options.rows(0) == ((1.0,),)
    assert all(a + b - c == 1.0 for a, b, c in GRID if (a, b, c) != (0.5, 0.5, 0.0))
    assert (0.5, 0.5, 0.0) in GRID


def test_two_pairs_are_weighed_one_by_one_and_together() -> None:
    grid = ((1.0, 0.0, 0.0), (0.5, 1.0, 0.25))
    assert CombineOptions(grid=grid).rows(2) == (
        (1.0, 0.0, 0.0, 0.0, 0.0),
        (0.5, 1.0, 0.25, 0.0, 0.0),
        (0.5, 0.0, 0.0, 1.0, 0.25),
        (0.5, 0.5, 0.125, 0.5, 0.125),
    )
    rows = CombineOptions().rows(2)
    assert len(rows) == len(set(rows)) == 3 * len(GRID) - 2
    assert rows.count((1.0, 0.0, 0.0, 0.0, 0.0)) == 1
    assert all(len(row) == 7 for row in CombineOptions().rows(3))


@pytest.mark.parametrize(
    ("options", "pairs", "message"),
    [
        (CombineOptions(alphas=(0.5, 1.0)), 1, "takes one number."),
        (CombineOptions(alphas=(0.5, 1.0)), 3, "takes one number, or 3"),
        (CombineOptions(powers=(1.0, 1.0, 1.0)), 2, "takes 5 numbers for 2 pairs"),
        (CombineOptions(powers=(1.0,) * 5), 1, "takes 3 numbers for 1 pair"),
    ],
)
def test_too_few_or_too_many_weights_are_refused(
    options: CombineOptions, pairs: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        options.rows(pairs)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alphas": (8.5,)}, "--alpha 8.5"),
        ({"alphas": (0.5, -9.0)}, "--alpha -9.0"),
        ({"alphas": (math.nan,)}, "--alpha nan"),
        ({"alphas": (1.0,), "powers": (1.0, 1.0, 1.0)}, "either --alpha or --weights"),
        ({"powers": (1.0, 1.0)}, "--weights takes A,B,C"),
        ({"powers": (1.0, 1.0, 1.0, 1.0)}, "--weights takes A,B,C"),
        ({"powers": (1.0, math.inf, 1.0)}, "not between -8 and 8"),
        ({"powers": (math.nan, 1.0, 1.0)}, "not between -8 and 8"),
        ({"plausibility": -0.1}, "--plausibility"),
        ({"plausibility": 1.5}, "--plausibility"),
        ({"plausibility": math.nan}, "--plausibility"),
    ],
)
def test_values_without_a_meaning_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CombineOptions(**values)  # type: ignore[arg-type]
