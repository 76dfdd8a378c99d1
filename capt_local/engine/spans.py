"""Which neighbours go into one batch."""

from __future__ import annotations

from functools import lru_cache

# What a batch costs, in batches of one token (measured on two cores, on weights of 0.5 and 1.1 B):
# the first token of all, each further one, and a whole four of them where kernels take four at
# once. A GPU reads the weights once for all.
_FURTHER, _ON_GPU = 0.3, 0.03
_READING, _ONE_OF_FOURS, _FOUR = 0.25, 0.75, 1.35


def cost(size: int, *, by_fours: bool, on_gpu: bool) -> float:
    """What a batch of so many tokens costs, in batches of one."""
    if by_fours:
        return _READING + _ONE_OF_FOURS * (size % 4) + _FOUR * (size // 4)
    return 1.0 + (_ON_GPU if on_gpu else _FURTHER) * (size - 1)


@lru_cache(maxsize=4096)
def spans(
    numbers: tuple[int, ...],
    count: int,
    least: int,
    *,
    by_fours: bool = False,
    on_gpu: bool = False,
) -> tuple[tuple[int, int], ...]:
    """The cheapest ranges of neighbours that hold all of some lanes.

    Args:
        numbers: of the lanes, ascending.
        count: of all lanes.
        least: lanes that a range must hold, at most `count`.
        by_fours: see `decode.model.Model`.
        on_gpu: likewise.

    Returns:
        First, and one behind the last, of each range, ascending; no two overlap.
    """
    # The cheapest way to cover the wanted lanes below each lane: the last range, and what is
    # covered before it.
    costs = [0.0] + [float("inf")] * count
    ranges: list[tuple[int, int] | None] = [None] * (count + 1)
    wanted = set(numbers)
    for stop in range(1, count + 1):
        if stop - 1 not in wanted:
            costs[stop] = costs[stop - 1]
        for first in range(stop - least, -1, -1):
            sum_here = costs[first] + cost(stop - first, by_fours=by_fours, on_gpu=on_gpu)
            if sum_here < costs[stop]:
                costs[stop], ranges[stop] = sum_here, (first, stop)
    found: list[tuple[int, int]] = []
    stop = count
    while stop:
        last = ranges[stop]
        if last is None:
            stop -= 1
        else:
            found.append(last)
            stop = last[0]
    return tuple(reversed(found))
