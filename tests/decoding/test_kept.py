"""Rows that were computed ahead: found by the text that they follow, and by no other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from capt_local.decoding.kept import KeptRows

LONG = list(range(3000))


def row(value: float) -> np.ndarray:
    return np.full(3, value, np.float32)


def test_a_row_is_found_by_its_whole_text() -> None:
    kept = KeptRows()
    kept.begin(LONG)
    kept.put([*LONG, 7], row(1), view=False)
    kept.put([*LONG, 7, 8], row(2), view=True)
    assert kept.get([*LONG, 7]) is not None and kept.get(LONG) is None
    for place in (0, 1500, 2980, 2999):  # one token, wherever it is, is another text
        other = [*LONG[:place], 77, *LONG[place + 1 :], 7]
        assert kept.get(other) is None
        assert kept.get([*other, 8]) is None
    assert kept.get([*LONG, 7, 8, 9]) is kept.get([]) is kept.get(LONG[:5]) is None


def test_the_front_of_a_longer_text() -> None:
    kept = KeptRows()
    kept.begin(LONG)
    path = [*LONG, 7, 8, 9]
    made = [row(value) for value in range(3)]
    for count, one in enumerate(made, len(LONG) + 1):
        kept.put(path[:count], one, view=False)
    for count, one in enumerate(made, len(LONG) + 1):
        assert kept.get(path, count) is one
    assert kept.get(path, len(LONG)) is None


class Watched(list[int]):
    """Counts the tokens that are copied out of it."""

    copied = 0

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        if isinstance(place, slice):
            Watched.copied += len(found)
        return found


@pytest.mark.parametrize("size", [100, 10_000])
def test_what_is_not_there_costs_no_more_in_a_long_text(size: int) -> None:
    text = Watched(range(size))
    kept = KeptRows()
    kept.begin(text)
    kept.put([*text, 1], row(1), view=False)
    Watched.copied = 0
    for count in range(size - 10, size + 1):
        assert kept.get(text, count) is None
    assert Watched.copied < 300


def test_views_go_when_they_are_overwritten_copies_stay() -> None:
    kept = KeptRows()
    kept.begin([1, 2])
    kept.put([1, 2, 3], row(1), view=True)
    kept.put([1, 2, 4], row(2), view=False)
    kept.put([1, 2, 5], row(3), view=True)
    kept.put([1, 2, 5], row(4), view=False)  # in the place of the view
    kept.overwritten()
    assert kept.get([1, 2, 3]) is None and len(kept) == 2
    assert kept.get([1, 2, 5]) is not None


def test_views_that_are_held_stay() -> None:
    kept, memory = KeptRows(), row(1)
    kept.begin([1])
    kept.put([1, 2], memory, view=True)
    kept.hold()
    memory[:] = 9
    kept.overwritten()
    found = kept.get([1, 2])
    assert found is not None and found.tolist() == [1, 1, 1]


def test_another_text_starts_anew() -> None:
    kept = KeptRows()
    kept.begin(LONG)
    kept.put([*LONG, 7], row(1), view=False)
    other = [5, *LONG]
    kept.put([*other, 7], row(2), view=False)
    assert len(kept) == 1 and kept.get([*LONG, 7]) is None
    kept.clear()
    assert kept.get([*other, 7]) is None
