"""A model and what it has seen: whatever interrupts them, they agree before anything is read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from capt_local.decoding.cached import CachedModel
from tests.decoding.trios import TARGET
from tests.fakes import FakeModel

TEXT = [0, *range(2, 12)]
OTHER = [*TEXT[:6], 40, 41, 42]


class Interrupted(FakeModel):
    """Is interrupted once, when a call has done its work."""

    interrupt: str = ""

    def extend(self, tokens: Sequence[int], rows: int = 1) -> np.ndarray:
        made = super().extend(tokens, rows)
        self._maybe("extend")
        return made

    def rewind(self, length: int) -> bool:
        made = super().rewind(length)
        self._maybe("rewind")
        return made

    def _maybe(self, call: str) -> None:
        if self.interrupt == call:
            self.interrupt = ""
            raise KeyboardInterrupt


def opened(*, can_rewind: bool) -> CachedModel:
    cached = CachedModel("target", Interrupted(TARGET, 5, can_rewind=can_rewind))
    cached.follow(TEXT[:8], 1)
    return cached


def agree(cached: CachedModel) -> None:
    assert isinstance(cached.model, FakeModel)
    assert cached.tokens == cached.model.tokens


@pytest.mark.parametrize("can_rewind", [True, False])
@pytest.mark.parametrize("call", ["extend", "rewind"])
@pytest.mark.parametrize("first", [TEXT, OTHER, TEXT[:5]])
@pytest.mark.parametrize("then", [TEXT, OTHER, TEXT[:5]])
def test_rows_are_right_after_an_interrupt(
    can_rewind: bool, call: str, first: list[int], then: list[int]
) -> None:
    cached, model = opened(can_rewind=can_rewind), FakeModel(TARGET, 5)
    assert isinstance(cached.model, Interrupted)
    cached.model.interrupt = call
    try:
        cached.follow(first, 2)
    except KeyboardInterrupt:
        assert not cached.model.interrupt
    cached.model.interrupt = ""
    rows = cached.follow(then, 2)
    agree(cached)
    for back, row in enumerate(rows):
        np.testing.assert_array_equal(row, model.logits(then[: len(then) - 1 + back]))


@pytest.mark.parametrize("can_rewind", [True, False])
@pytest.mark.parametrize("call", ["extend", "rewind"])
def test_whatever_comes_next_finds_them_in_agreement(can_rewind: bool, call: str) -> None:
    def interrupted() -> CachedModel:
        cached = opened(can_rewind=can_rewind)
        assert isinstance(cached.model, Interrupted)
        cached.model.interrupt = call
        with pytest.raises(KeyboardInterrupt):
            cached.follow(OTHER, 1)
        return cached

    for length in (0, 3, 99):
        cached = interrupted()
        cached.keep(length)
        agree(cached)
        assert len(cached.tokens) <= max(length, len(OTHER))
    cached = interrupted()
    cached.bring(TEXT)
    agree(cached)
    assert cached.tokens == TEXT
    cached = interrupted()
    cached.forget()
    agree(cached)
    assert not cached.tokens
    cached = interrupted()
    cached.branch([[3], [4, 5]])
    agree(cached)
