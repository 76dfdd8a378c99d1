"""The target's token events after a text, over all sequences of a proxy's pieces.

An event is "the target's tokenization of what follows starts with token t". Bytes that a piece
adds behind the text decide it, unless a longer target token begins with all of them: then what
follows the piece decides.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capt_local.alignment.projection import END_EVENT, NO_EVENT, FloatArray
from capt_local.tokenization.vocabulary import BoolArray, IntArray, PrefixIndex
from tests.reference.growth import Read
from tests.reference.rows import Branch, pieces_behind

# Entries of tables that are kept: about 5 bytes each.
_CACHE_ENTRIES = 4_000_000


@dataclass(frozen=True, slots=True)
class EventTable:
    """What the pieces at places [low, high) decide.

    Attributes:
        low, high: places among the pieces in byte order.
        events: with which event each begins, shape (high - low,).
        undecided: whether a longer token may still come, shape (high - low,).
        end: the event if the text ends instead of going on with a piece.
    """

    low: int
    high: int
    events: IntArray
    undecided: BoolArray
    end: int


class EventTables:
    """Tables of the target's events for the pieces of one proxy, made when needed.

    Args:
        index: the proxy's text tokens in byte order.
        first: the event with which the target's tokenizer begins some bytes (`TargetEvents.first`).
        extendable: whether a token of the target begins with these bytes and goes on.
        count: number of events, END_EVENT among them.
    """

    def __init__(
        self,
        index: PrefixIndex,
        first: Callable[[bytes], int],
        extendable: Callable[[bytes], bool],
        count: int,
    ) -> None:
        """Starts without tables."""
        self.index, self.count = index, count
        self._first, self._extendable = first, extendable
        self._kept: OrderedDict[tuple[bytes, bytes], EventTable] = OrderedDict()
        self._entries = 0

    def table(self, rest: bytes, ahead: bytes) -> EventTable:
        """The table for pieces after a sequence that lacks `rest` of the text, or is `ahead`."""
        found = self._kept.get((rest, ahead))
        if found is not None:
            self._kept.move_to_end((rest, ahead))
            return found
        found = self._kept[rest, ahead] = self._make(rest, ahead)
        self._entries += found.high - found.low
        while self._entries > _CACHE_ENTRIES and len(self._kept) > 1:
            old = self._kept.popitem(last=False)[1]
            self._entries -= old.high - old.low
        return found

    def _make(self, rest: bytes, ahead: bytes) -> EventTable:
        low, high = pieces_behind(self.index, rest)
        events = np.full(high - low, NO_EVENT, dtype=np.int32)
        undecided = np.zeros(high - low, dtype=np.bool_)
        place = low
        while place < high:
            key = self.index.keys[place]
            text = ahead + key[len(rest) :]
            size = self._decided(text, len(ahead))
            end = place + 1
            if size:
                # What is decided is decided for all that begin alike; they stand together.
                text = text[:size]
                end = self.index.interval(rest + text[len(ahead) :])[1]
            undecided[place - low] = not size
            events[place - low : end - low] = self._first(text)
            place = end
        # Bytes that the target has no event for are counted in a place of their own.
        events[events == NO_EVENT] = self.count
        return EventTable(low, high, events, undecided, self._first(ahead) if ahead else END_EVENT)

    def _decided(self, text: bytes, known: int) -> int:
        """After how many bytes no longer token can come; 0 if one still can."""
        sizes = range(known + 1, len(text) + 1)
        return next((size for size in sizes if not self._extendable(text[:size])), 0)


def event_masses(
    tables: EventTables, roots: Sequence[tuple[Branch, bytes]], read: Read, mass: float
) -> FloatArray:
    """The weight of each event.

    Args:
        tables: of the target and the proxy.
        roots: sequences whose rows are read, each with the text that it does not cover yet.
        read: reads the rows of sequences.
        mass: undecided sequences of more than this weight are read one step further.

    Returns:
        Shape (tables.count,).
    """
    result = np.zeros(tables.count + 1)  # the last place takes what is no event
    wave = [(one, rest, b"") for one, rest in roots]
    while wave:
        children: list[tuple[Branch, bytes, bytes]] = []
        for one, rest, ahead in wave:
            table = tables.table(rest, ahead)
            if not rest:
                result[table.end] += one.weight * one.read.end
            shares = one.read.pieces[table.low : table.high] * np.float64(one.weight)
            unsure = np.flatnonzero(table.undecided & (shares > mass))
            places, weights = table.low + unsure, shares[unsure].tolist()
            children += _children(tables.index, one, (rest, ahead), places, weights)
            shares[unsure] = 0.0
            result += np.bincount(table.events, shares, minlength=len(result))
        read([one for one, _, _ in children])
        wave = children
    return result[:-1]


def _children(
    index: PrefixIndex,
    one: Branch,
    around: tuple[bytes, bytes],
    places: npt.NDArray[np.intp],
    weights: Sequence[float],
) -> list[tuple[Branch, bytes, bytes]]:
    """The sequences that go on with the pieces at some places, and how far they are ahead."""
    rest, ahead = around
    return [
        (
            Branch((*one.tokens, int(index.ids[place])), one.end, weight),
            b"",
            ahead + index.keys[place][len(rest) :],
        )
        for place, weight in zip(places.tolist(), weights, strict=True)
    ]
