"""A row of a proxy in byte order, and which pieces stand where along a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from capt_local.alignment.projection import FloatArray, Probabilities
from capt_local.tokenization.vocabulary import IntArray, PrefixIndex

# The rows that follow a fixed head and each of some tails, shape (tails, vocabulary): probabilities
# of the whole vocabulary, control tokens included. An empty tail is the head itself; it is asked
# for at most once, before the first text.
Reader = Callable[[Sequence[tuple[int, ...]]], Probabilities]


class Row:
    """What follows one sequence of tokens.

    Attributes:
        pieces: probability of each text token in byte order, shape (len(index.keys),).
        end: probability that the text ends here (all end tokens together).
    """

    __slots__ = ("_sums", "end", "pieces")

    def __init__(self, row: Probabilities, index: PrefixIndex, end_ids: IntArray) -> None:
        """Sorts a row as the reader returns it; what is no text and no end is left out."""
        self.pieces: Probabilities = row[index.ids]
        self.end = float(row[end_ids].sum(dtype=np.float64))
        self._sums: FloatArray | None = None

    def mass(self, low: int, high: int) -> float:
        """Probability of the pieces at places [low, high)."""
        return float(self.pieces[low:high].sum(dtype=np.float64))

    def masses(self, low: IntArray, high: IntArray) -> FloatArray:
        """The same for many intervals, shape (n,); absolute error about 1e-13."""
        if self._sums is None:
            self._sums = np.concatenate(([0.0], np.cumsum(self.pieces, dtype=np.float64)))
        found: FloatArray = self._sums[high] - self._sums[low]
        return found


@dataclass(slots=True, eq=False)
class Branch:
    """One sequence of pieces that covers a text up to some place.

    Attributes:
        tokens: behind the head.
        end: how many bytes of the text they are.
        weight: their probability, relative to that of the text.
        row: what follows them, once it is read.
    """

    tokens: tuple[int, ...]
    end: int
    weight: float
    row: Row | None = None

    @property
    def read(self) -> Row:
        """The row, which must be there."""
        if self.row is None:
            raise ValueError("the row of this sequence was not read")
        return self.row


class Span(NamedTuple):
    """The pieces that begin with some bytes: [low, middle) equal them, [middle, high) go on."""

    size: int
    low: int
    middle: int
    high: int


def spans(index: PrefixIndex, text: bytes) -> list[Span]:
    """The pieces that begin with text[:1], text[:2], ... as long as there are any."""
    found = []
    for size in range(1, len(text) + 1):
        low, high = index.interval(text[:size])
        if low == high:
            break
        found.append(Span(size, low, index.exact(text[:size])[1], high))
    return found


def pieces_behind(index: PrefixIndex, rest: bytes) -> tuple[int, int]:
    """The places of the pieces that begin with `rest` and go on; all pieces for an empty one."""
    if not rest:
        return 0, len(index.keys)
    return index.exact(rest)[1], index.interval(rest)[1]
