"""What drafts are looked up from, and rows that are kept: against the plain way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from capt_local.decoding.kept import KeptRows
from capt_local.decoding.speculate.lookup import Lookup

TEXT = st.lists(st.integers(0, 2), max_size=40)


def plain(tokens: list[int]) -> tuple[int, int] | None:
    """Grade and place of the latest earlier occurrence of the longest end."""
    size = len(tokens)
    for length in range(min(6, size), 1, -1):
        for end in range(size - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[size - length :]:
                return length - 2, end
    return None


@given(TEXT, TEXT, st.integers(1, 12))
def test_the_draft_is_what_followed_the_latest_longest_match(
    text: list[int], more: list[int], most: int
) -> None:
    source = Lookup()
    trio: Any = SimpleNamespace(tokens=[])
    source.start(trio)
    for end in range(len(text + more) + 1):
        if end == len(text):
            source.start(trio)  # another answer on the same models
        trio.tokens = (text + more)[:end]
        found = plain(trio.tokens)
        assert source.grade(trio) == (None if found is None else found[0])
        draft = source.draft(trio, most, lambda grade: True)
        assert len(draft.tokens) == len(draft.grades) == (most if found else 0)
        copied = list(trio.tokens)
        for token in draft.tokens:
            assert token == copied[found[1] + len(copied) - end]
            copied.append(token)


def test_a_lookup_follows_a_text_that_was_taken_back() -> None:
    source, trio = Lookup(), SimpleNamespace(tokens=[1, 2, 3, 1, 2])
    asked: Any = trio
    assert source.draft(asked, 1, lambda grade: True).tokens == [3]
    trio.tokens = [4, 1, 2, 5, 1, 2]
    assert source.draft(asked, 1, lambda grade: True).tokens == [5]


def test_a_lookup_drafts_as_long_as_it_may() -> None:
    trio: Any = SimpleNamespace(tokens=[1, 2, 3, 4, 5, 1, 2])
    left = iter([True, True, False])
    assert Lookup().draft(trio, 9, lambda grade: next(left)).tokens == [3, 4]


@given(st.data())
def test_kept_rows_are_those_that_were_put_until_they_are_overwritten(data: st.DataObject) -> None:
    kept, known = KeptRows(), dict[tuple[int, ...], tuple[float, bool]]()
    stem = data.draw(st.lists(st.integers(0, 1), max_size=30))
    kept.begin(stem)
    for number in range(data.draw(st.integers(0, 20))):
        match data.draw(st.sampled_from(["put", "overwritten", "hold", "clear"])):
            case "put":
                tail = data.draw(st.lists(st.integers(0, 1), max_size=3))
                text, view = stem + tail, data.draw(st.booleans())
                kept.put(text, np.full(2, number, np.float32), view=view)
                known[tuple(text)] = (number, view)
            case "overwritten":
                kept.overwritten()
                known = {text: row for text, row in known.items() if not row[1]}
            case "hold":
                held = [kept.get(list(text)) for text, row in known.items() if row[1]]
                kept.hold()
                for row in held:  # the memory that they were views of
                    assert row is not None
                    row[:] = -1
                known = {text: (row[0], False) for text, row in known.items()}
            case "clear":
                kept.clear()
                known.clear()
        assert len(kept) == len(known)
        for text, (value, _) in known.items():
            found = kept.get(list(text))
            assert found is not None and found[0] == value
        assert kept.get([9]) is None


def test_rows_of_another_text_start_anew() -> None:
    kept, row = KeptRows(), np.zeros(1, np.float32)
    text = list(range(40))
    kept.begin(text)
    kept.put([*text, 1], row, view=False)
    assert kept.get([*text, 1]) is row and kept.get(text) is None
    kept.put([7, *text], row, view=False)
    assert kept.get([*text, 1]) is None and kept.get([7, *text]) is row
