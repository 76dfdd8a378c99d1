"""Which neighbours go into one batch."""

from __future__ import annotations

from collections.abc import Sequence

_TILE = 4  # quantized matrices take four tokens at once in little more time than three


def spans(numbers: Sequence[int], count: int, gap: int) -> list[tuple[int, int]]:
    """Ranges of at least two neighbours that hold all of some lanes.

    Args:
        numbers: of the lanes, ascending.
        count: of all lanes, at least two.
        gap: so many lanes between two others are rather taken in than computed apart.

    Returns:
        First, and one behind the last, of each range.
    """
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number - found[-1][1] <= gap:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return [_widened(first, stop, count) for first, stop in found]


def _widened(first: int, stop: int, count: int) -> tuple[int, int]:
    """Two lanes at least, and four instead of three."""
    size = max(stop - first, 2)
    size += size % _TILE == _TILE - 1
    stop = min(first + size, count)
    return max(min(first, stop - size), 0), stop
