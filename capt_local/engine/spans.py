"""Which neighbours go into one batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def spans(
    numbers: Sequence[int], count: int, gap: int, *, by_fours: bool = False
) -> list[tuple[int, int]]:
    """Ranges of at least two neighbours that hold all of some lanes.

    Args:
        numbers: of the lanes, ascending.
        count: of all lanes, at least two.
        gap: so many lanes between two others are rather taken in than computed apart.
        by_fours: four lanes take no more time than two or three; see `decode.model.Model`.

    Returns:
        First, and one behind the last, of each range.
    """
    found = _merged(((number, number + 1) for number in numbers), gap)
    while True:
        wider = [_widened(first, stop, count, by_fours) for first, stop in found]
        joined = _merged(wider, 0)
        if joined == found:
            return found
        found = joined


def _merged(ranges: Iterable[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """Ranges, ascending, of which those that overlap or lie close have become one."""
    found: list[tuple[int, int]] = []
    for first, stop in ranges:
        if found and first - found[-1][1] <= gap:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((first, stop))
    return found


def _widened(first: int, stop: int, count: int, by_fours: bool) -> tuple[int, int]:
    """Two lanes at least."""
    size = max(stop - first, 2)
    if by_fours and size % 4 > 1:
        size += 4 - size % 4
    stop = min(first + size, count)
    return max(min(first, stop - size), 0), stop
