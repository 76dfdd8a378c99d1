"""The parameters of an answer check themselves, and say which combinations are mixed."""

from __future__ import annotations

import math

import pytest

from capt_local.decoding.options import ANSWER_GRID, GRID, CombineOptions, SampleOptions
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
    with pytest.raises(UsageError, match="takes one number, or 3"):
        CombineOptions(alphas=(0.5, 1.0)).rows(3)
    with pytest.raises(UsageError, match="takes 3 numbers for 1 pair"):
        CombineOptions(powers=(1.0,) * 5).rows(1)


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        (CombineOptions, {"alphas": (8.5,)}, "--alpha 8.5"),
        (CombineOptions, {"alphas": (0.5, math.nan)}, "--alpha nan"),
        (CombineOptions, {"alphas": (1.0,), "powers": (1.0, 1.0, 1.0)}, "either --alpha or --w"),
        (CombineOptions, {"powers": (1.0, 1.0)}, "--weights takes A,B,C"),
        (CombineOptions, {"powers": (1.0, math.inf, 1.0)}, "not between -8 and 8"),
        (CombineOptions, {"plausibility": 1.5}, "--plausibility"),
        (CombineOptions, {"plausibility": math.nan}, "--plausibility"),
        (SampleOptions, {"temperature": -1}, "--temp"),
        (SampleOptions, {"temperature": math.nan}, "--temp"),
        (SampleOptions, {"repeat_penalty": 0}, "--repeat-penalty"),
        (SampleOptions, {"repeat_penalty": math.nan}, "--repeat-penalty"),
        (SampleOptions, {"seed": -1}, "--seed"),
        (SampleOptions, {"top_k": -1}, "--top-k"),
        (SampleOptions, {"top_p": 0}, "--top-p"),
        (SampleOptions, {"min_p": 2}, "--min-p"),
    ],
)
def test_values_without_a_meaning_are_refused(
    options: type[CombineOptions | SampleOptions], values: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        options(**values)  # type: ignore[arg-type]
