"""The projection with its heaviest open pieces read one position further."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from capt_local.alignment.cover import Cover, Shares, credit, share
from capt_local.alignment.events import TargetEvents
from capt_local.alignment.projection import Asked, Projection
from capt_local.alignment.question import FloatArray, Probabilities, View
from capt_local.tokenization.prefix_index import PrefixIndex
from capt_local.tokenization.vocabulary import IntArray, Vocabulary

# Rows after the text and each of some pieces, shape (pieces, vocabulary).
Read = Callable[[Sequence[int]], Sequence[Probabilities]]

# Less doubt than this is not worth a position.
_LEAST = 1e-3
_TINY = float(np.finfo(np.float32).tiny)
# Tables of pieces that are kept, each of some 100 kB.
_TABLES = 1500


class _Behind(TargetEvents):
    """The target's events for bytes that follow a piece.

    The token that begins them is taken to be the longest that does: the tokenizer is not asked,
    since there is a table for each piece.
    """

    def __init__(self, events: TargetEvents, piece: bytes) -> None:
        self._all = events
        self._piece = piece
        self.count = events.count
        self.of_rank = events.of_rank

    def interval(self, text: bytes) -> tuple[int, int]:
        """See `TargetEvents.interval`."""
        return self._all.interval(self._piece + text)

    def first(self, text: bytes) -> int:
        """See above."""
        text = self._piece + text
        found = (self._all.of_piece(text[:size]) for size in range(len(text), 0, -1))
        event = next((event for event in found if event > 0), None)
        return self._all.first(text) if event is None else event


class Branching(Projection):
    """See the module. A piece is open as far as its mass is shared among several tokens.

    Args:
        proxy: see `Projection`.
        events: of the target.
        most: pieces that are read on at each place.

    Attributes:
        read: set before each question, for the proxy in question.
        positions: decoded for this so far.
        questions: asked so far.
    """

    read: Read

    def __init__(self, proxy: Vocabulary, events: TargetEvents, most: int) -> None:
        super().__init__(proxy, events, long_tokens=True, healing=True)
        self._target = events
        self._pieces = PrefixIndex(proxy)
        self._vocabulary = proxy
        self._most = most
        self._tables: OrderedDict[int, Cover] = OrderedDict()
        self.positions = 0
        self.questions = 0

    def probability(self, question: Asked, view: View) -> FloatArray:
        """As of the projection, with the mass of the pieces that are read on shared anew."""
        self.questions += 1
        said = super().probability(question, view)
        shares = share([self._plain], question.wanted, question.prior)
        chosen = self._open(shares, view.row)
        if not len(chosen):
            return said
        self.positions += len(chosen)
        size = len(question.wanted)
        taken = shares._replace(parts=shares.parts * np.isin(shares.pieces[0], chosen))
        before = credit(taken, [view.row], [1.0], size)
        after = np.zeros(size)
        for piece, row in zip(chosen.tolist(), self.read(chosen.tolist()), strict=True):
            behind = share([self._behind(piece)], question.wanted, question.prior)
            after += credit(behind, [row], [float(view.row[piece])], size)
        # A token's share differs from 0 by rounding alone where it was all taken away.
        return np.maximum(said + (after - before) / self._total(view), 0.0)

    def _open(self, shares: Shares, row: Probabilities) -> IntArray:
        """The pieces whose mass is most in doubt."""
        largest = np.zeros(len(row))
        np.maximum.at(largest, shares.pieces[0], shares.parts)
        touched = np.unique(shares.pieces[0])
        doubt = row[touched] * (1.0 - largest[touched])
        order = np.argsort(-doubt)[: self._most]
        return touched[order[doubt[order] > _LEAST]].astype(np.int32)

    def _total(self, view: View) -> float:
        """What `Projection.probability` divides by."""
        total, inverse = 1.0, 1.0
        for back in view.back:
            inverse /= max(float(back.row[back.token]), _TINY)
            longer = self._healer(back.rest).longer
            total += float(back.row[longer].sum(dtype=np.float64)) * inverse
        return total

    def _behind(self, piece: int) -> Cover:
        found = self._tables.get(piece)
        if found is None:
            events = _Behind(self._target, self._vocabulary.piece(piece))
            nothing = np.empty(0, dtype=np.int32)
            found = Cover(b"", self._pieces, nothing, events, long_tokens=True)
            self._tables[piece] = found
            if len(self._tables) > _TABLES:
                self._tables.popitem(last=False)
        else:
            self._tables.move_to_end(piece)
        return found
