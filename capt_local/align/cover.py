"""How the pieces of a proxy, after some bytes that are already there, cover the target's events.

With nothing there, this is the projection of a row. With the bytes of the proxy's last pieces
there, it is their healing: a longer piece that starts with these bytes counts by what it adds. One
table serves both.

A piece often leaves open which token comes: "card" may be the token "card", or the beginning of
"cardiac". Its mass is shared among all of them in proportion to the target's own probabilities, so
that the proxy says how likely the group is, and the target who in the group. A token that a longer
piece begins as well takes next to nothing from the shorter one: a proxy that writes "cardiac" with
"cardi" does not write it with "card".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from capt_local.align.events import END_EVENT, TargetEvents
from capt_local.align.question import FloatArray, Probabilities
from capt_local.vocab.prefix_index import PrefixIndex
from capt_local.vocab.vocabulary import IntArray

# What a piece gives to a token that a longer piece begins too. Chosen on clinical notes: 0.003 was
# 2 % better in bits per byte than an equal share, and like 0.001 (docs/results.md).
ASIDE = 0.003
_LEAST = 5e-324


class Shares(NamedTuple):
    """Which part of which piece goes to which of the wanted events.

    Attributes:
        places: which of the wanted events gets something, ascending, shape (entries,).
        pieces: from which piece, shape (entries,).
        parts: which part of the piece's probability, shape (entries,).
    """

    places: npt.NDArray[np.intp]
    pieces: IntArray
    parts: FloatArray


class Cover:
    """Which pieces may begin which events, after the bytes `start`.

    Args:
        start: bytes that are already there; empty for the plain projection.
        proxy: the proxy's text tokens in byte order.
        end_ids: tokens of the proxy that end a generation; only for the plain projection.
        events: of the target.
        long_tokens: whether tokens that are longer than a piece share in it.

    Attributes:
        longer: the pieces that begin with `start` and add to it, ends included, shape (m,).
    """

    def __init__(
        self,
        start: bytes,
        proxy: PrefixIndex,
        end_ids: IntArray,
        events: TargetEvents,
        *,
        long_tokens: bool,
    ) -> None:
        """Builds the table; costs a few us a piece."""
        low, high = proxy.exact(start)[1] if start else 0, proxy.interval(start)[1]
        added = [key[len(start) :] for key in proxy.keys[low:high]]
        self.longer: IntArray = np.concatenate((proxy.ids[low:high], end_ids)).astype(np.int32)
        entries = _groups(added, events) if long_tokens else _own(added, events)
        ends = np.arange(len(added), len(self.longer), dtype=np.int32)
        event = np.concatenate((entries.event, np.full(len(ends), END_EVENT, np.int32)))
        piece = np.concatenate((entries.piece, ends))
        aside = np.concatenate((entries.aside, np.zeros(len(ends), np.bool_)))
        # The entries of one event side by side, so that one `reduceat` sums them all.
        order = np.argsort(event, kind="stable")
        self._piece: IntArray = piece[order]
        self._weight = np.where(aside[order], np.float32(ASIDE), np.float32(1.0))
        keys, starts, counts = np.unique(event[order], return_index=True, return_counts=True)
        self._starts, self._counts = starts.astype(np.intp), counts.astype(np.intp)
        self._sums = _Places(keys, events.count)

    @property
    def size(self) -> int:
        """Entries of the table, for the budget of a cache."""
        return len(self.longer) + 2 * len(self._piece) + self._sums.size

    def share(self, wanted: IntArray, prior: FloatArray) -> Shares:
        """Shares the pieces among events.

        Args:
            wanted: events, shape (n,); NO_EVENT gets nothing.
            prior: the target's probability of each, shape (n,).
        """
        keys, found = self._sums.find(wanted)
        counts = self._counts[keys]
        places = np.repeat(np.flatnonzero(found), counts)
        # The entries of the wanted events alone, one event behind the other.
        entry = np.repeat(self._starts[keys] - (np.cumsum(counts) - counts), counts)
        entry += np.arange(len(entry))
        piece = self._piece.take(entry)
        part = self._weight.take(entry) * prior.take(places)
        group = np.bincount(piece, part, minlength=len(self.longer))
        # Where the target has all of a group at 0, nobody gets anything.
        part /= np.maximum(group.take(piece), _LEAST)
        return Shares(places, self.longer.take(piece), part)


def credit(shares: Shares, row: Probabilities, size: int) -> FloatArray:
    """The probability of each wanted event.

    Args:
        shares: of the pieces.
        row: the proxy's probabilities, shape (proxy vocabulary,).
        size: number of wanted events.
    """
    given: FloatArray = row.take(shares.pieces) * shares.parts
    # Of no entries at all numpy counts integers.
    return np.bincount(shares.places, given, minlength=size).astype(np.float64, copy=False)


class _Entries(NamedTuple):
    """Pairs of an event and a piece that may begin it; `aside`: a longer piece may, too."""

    event: IntArray
    piece: IntArray
    aside: npt.NDArray[np.bool_]


def _own(added: list[bytes], events: TargetEvents) -> _Entries:
    """Each piece for the one event with which the target's tokenizer begins its bytes."""
    event = np.fromiter(map(events.first, added), np.int32, len(added))
    piece = np.arange(len(added), dtype=np.int32)
    return _Entries(event, piece, np.zeros(len(added), np.bool_))


def _groups(added: list[bytes], events: TargetEvents) -> _Entries:
    """Each piece for all events that begin with its bytes, or, if there are none, its first one.

    The events that begin with given bytes are an interval of the sorted events; painting the
    intervals in order of length leaves each event with the length of the longest piece of all.
    """
    spans = np.array([events.interval(part) for part in added], np.int32).reshape(-1, 2)
    sizes = spans[:, 1] - spans[:, 0]
    lengths = np.fromiter(map(len, added), np.int32, len(added))
    longest = np.zeros(events.count, dtype=np.int32)
    for place in sorted(np.flatnonzero(sizes).tolist(), key=lengths.__getitem__):
        longest[spans[place, 0] : spans[place, 1]] = lengths[place]
    piece = np.repeat(np.arange(len(added), dtype=np.int32), sizes)
    ends = np.cumsum(sizes)
    event = np.arange(len(piece), dtype=np.int32)
    event += np.repeat(spans[:, 0] - (ends - sizes), sizes).astype(np.int32)
    alone = np.flatnonzero(sizes == 0).astype(np.int32)
    first = np.fromiter((events.first(added[place]) for place in alone), np.int32, len(alone))
    return _Entries(
        np.concatenate((event, first)),
        np.concatenate((piece, alone)),
        np.concatenate((longest[event] > lengths[piece], np.zeros(len(alone), np.bool_))),
    )


class _Places:
    """Finds events among ascending keys: by a table of all events if the keys are many."""

    def __init__(self, keys: IntArray, events: int) -> None:
        self._keys = keys
        self._table: IntArray | None = None
        if len(keys) * 16 > events:
            # One entry more, so that NO_EVENT (-1) finds nothing.
            self._table = np.full(events + 1, -1, dtype=np.int32)
            self._table[keys] = np.arange(len(keys))

    @property
    def size(self) -> int:
        """Entries in memory."""
        return len(self._keys) + (0 if self._table is None else len(self._table))

    def find(self, wanted: IntArray) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Places of those wanted events that are among the keys, and which ones these are."""
        if not len(self._keys):
            return np.empty(0, np.intp), np.zeros(len(wanted), np.bool_)
        if self._table is not None:
            places = self._table[wanted]
            found = places >= 0
        else:
            places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
            found = self._keys[places] == wanted
        return places[found].astype(np.intp), found
