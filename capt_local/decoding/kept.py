"""Rows of a model that were computed before they are asked for, by the tokens that they follow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Row = npt.NDArray[np.float32]

# A proxy's last tokens may change when the text grows; rows are found by what follows these.
_LOOSE = 16


class KeptRows:
    """What follows each of some texts that share a stem.

    A row is either a copy or a view into memory that the next decoding overwrites.
    """

    def __init__(self) -> None:
        """Keeps nothing."""
        self._stem: list[int] = []
        self._rows: dict[tuple[int, ...], Row] = {}
        self._views: set[tuple[int, ...]] = set()
        self._longest = -1  # of the keys

    def __len__(self) -> int:
        """Rows that are kept."""
        return len(self._rows)

    def begin(self, tokens: Sequence[int]) -> None:
        """Drops all rows; those that come follow texts which begin like `tokens`."""
        self.clear()
        self._stem = list(tokens[: max(0, len(tokens) - _LOOSE)])

    def put(self, tokens: list[int], row: Row, *, view: bool) -> None:
        """Keeps what follows `tokens`; another text than begun with starts anew."""
        if tokens[: len(self._stem)] != self._stem:
            self.begin(tokens)
        key = tuple(tokens[len(self._stem) :])
        self._longest = max(self._longest, len(key))
        if view:
            self._views.add(key)
        self._rows[key] = row
        if not view:
            self._views.discard(key)

    def get(self, tokens: list[int], count: int | None = None) -> Row | None:
        """What follows the first `count` of these tokens, or all of them, if it is here."""
        size, end = len(self._stem), len(tokens) if count is None else count
        # The text is long and is asked about many times a step: its end, which is short, comes
        # first, and only where that is known the rest.
        if not size <= end <= size + self._longest:
            return None
        row = self._rows.get(tuple(tokens[size:end]))
        return row if row is not None and tokens[:size] == self._stem else None

    def overwritten(self) -> None:
        """Drops the views: the model has decoded something else."""
        for key in self._views:
            self._rows.pop(key, None)  # an interrupt may have left some to be dropped again
        self._views.clear()

    def hold(self) -> None:
        """Makes copies of the views, before they are overwritten."""
        while self._views:
            key = next(iter(self._views))
            self._rows[key] = self._rows[key].copy()
            self._views.discard(key)

    def clear(self) -> None:
        """Drops everything."""
        self._rows.clear()
        self._views.clear()
        self._stem, self._longest = [], -1
