"""Which neighbours go into one batch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from capt_local.llama.devices import Kernels


def tried_sizes(count: int) -> list[int]:
    """The sizes of batches that are used for so many lanes, if they compute alike."""
    steps = {1, 2, *range(4, min(count, 8), 2), *range(8, count, 4), count}
    return sorted(size for size in steps if size <= count)


@lru_cache(maxsize=4096)
def spans(
    numbers: tuple[int, ...], count: int, sizes: tuple[int, ...], kernels: Kernels
) -> tuple[tuple[int, int], ...]:
    """The cheapest ranges of neighbours that hold all of some lanes.

    Args:
        numbers: of the lanes, ascending.
        count: of all lanes.
        sizes: that a range may have, none above `count`.
        kernels: which compute them.

    Returns:
        First, and one behind the last, of each range, ascending; no two overlap.
    """
    # The cheapest way to cover the wanted lanes below each lane, and the range that ends there.
    costs = [0.0] + [float("inf")] * count
    ranges: list[tuple[int, int] | None] = [None] * (count + 1)
    wanted = set(numbers)
    for stop in range(1, count + 1):
        if stop - 1 not in wanted:
            costs[stop] = costs[stop - 1]
        for size in sizes:
            if size <= stop and costs[stop - size] + kernels.cost(size) < costs[stop]:
                costs[stop] = costs[stop - size] + kernels.cost(size)
                ranges[stop] = (stop - size, stop)
    found: list[tuple[int, int]] = []
    stop = count
    while stop:
        last = ranges[stop]
        stop = stop - 1 if last is None else last[0]
        found += [last] if last is not None else []
    return tuple(reversed(found))


def best_sizes(classes: Iterable[tuple[int, ...]], count: int, kernels: Kernels) -> tuple[int, ...]:
    """Of several sets of sizes the one that serves all lanes, and one alone, at the least cost.

    Args:
        classes: one of them serves all lanes, as a size of 1 does.
        count: of all lanes.
        kernels: which compute them.
    """

    def price(sizes: tuple[int, ...]) -> float:
        ways = [tuple(range(count)), (0,)]
        ranges = [each for lanes in ways for each in spans(lanes, count, sizes, kernels)]
        return sum(kernels.cost(stop - first) for first, stop in ranges)

    return min((sizes for sizes in classes if _covers(sizes, count, kernels)), key=price)


def _covers(sizes: tuple[int, ...], count: int, kernels: Kernels) -> bool:
    """Whether every lane finds a place in some range beside those of all others."""
    held = spans(tuple(range(count)), count, sizes, kernels)
    return sum(stop - first for first, stop in held) == count
