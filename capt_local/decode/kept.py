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
        self._rows[key] = row
        if view:
            self._views.add(key)
        else:
            self._views.discard(key)

    def get(self, tokens: list[int]) -> Row | None:
        """What follows `tokens`, if it is here."""
        size = len(self._stem)
        if not self._rows or tokens[:size] != self._stem:
            return None
        return self._rows.get(tuple(tokens[size:]))

    def overwritten(self) -> None:
        """Drops the views: the model has decoded something else."""
        for key in self._views:
            del self._rows[key]
        self._views.clear()

    def hold(self) -> None:
        """Makes copies of the views, before they are overwritten."""
        for key in self._views:
            self._rows[key] = self._rows[key].copy()
        self._views.clear()

    def clear(self) -> None:
        """Drops everything."""
        self._stem = []
        self._rows.clear()
        self._views.clear()
