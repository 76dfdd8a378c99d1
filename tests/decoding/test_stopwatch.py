"""What a machine costs, as measured: enough is enough."""

from __future__ import annotations

from capt_local.decoding.stopwatch import Stopwatch


def test_batches_that_wait_for_a_single_token_are_not_piled_up() -> None:
    watch = Stopwatch(lambda count: 1.0 + 0.22 * (count - 1))
    for _ in range(10_000):
        watch.time(4, 1.66)
    assert sum(len(kept) for kept in vars(watch).values() if isinstance(kept, list)) < 50
    assert watch.one is watch.more is None
    for _ in range(20):
        watch.time(1, 1.0)
    assert watch.one == 1.0 and watch.more == 1.0  # as expected
