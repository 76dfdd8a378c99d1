"""What a batch costs."""

from __future__ import annotations

import pytest

from capt_local.engine.kernels import Kernels

KINDS = [
    Kernels(), Kernels(by_fours=True), Kernels(tiles=True), Kernels(on_gpu=True)
]  # fmt: skip


@pytest.mark.parametrize("kernels", KINDS)
def test_one_token_is_the_unit_and_a_filled_batch_is_cheaper_than_its_tokens(
    kernels: Kernels,
) -> None:
    assert kernels.cost(1) == pytest.approx(1.0) and kernels.filled(1) == 1
    costs = [kernels.cost(kernels.filled(size)) for size in range(1, 33)]
    assert costs == sorted(costs)
    assert all(cost <= size for size, cost in enumerate(costs, 1))


def test_two_or_three_tokens_are_filled_up_where_four_cost_less() -> None:
    fours = Kernels(by_fours=True)
    assert [fours.filled(size) for size in range(1, 10)] == [1, 4, 4, 4, 5, 8, 8, 8, 9]
    for kernels in (Kernels(), Kernels(tiles=True), Kernels(on_gpu=True)):
        assert [kernels.filled(size) for size in range(1, 10)] == list(range(1, 10))
