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

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from capt_local.alignment.events import END_EVENT, NO_EVENT, TargetEvents
from capt_local.alignment.question import FloatArray, Probabilities
from capt_local.tokenization.prefix_index import PrefixIndex
from capt_local.tokenization.vocabulary import IntArray

# What a piece gives to a token that a longer piece begins too. Chosen on clinical notes: 0.003 was
# 2 % better in bits per byte than an equal share, and like 0.001 (docs/results.md).
ASIDE = 0.003
_LEAST = 5e-324

Places: TypeAlias = npt.NDArray[np.intp]


class Shares(NamedTuple):
    """Which part of which piece goes to which of the wanted events.

    The entries of one cover stand behind those of the other.

    Attributes:
        places: which of the wanted events gets something, shape (entries,).
        pieces: from which piece, for each cover.
        parts: which part of the piece's probability, shape (entries,).
    """

    places: Places
    pieces: tuple[IntArray, ...]
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
        longer: the pieces that begin with `start` and add to it, ends included, ascending, shape
            (m,).
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
        longer = np.concatenate((proxy.ids[low:high], end_ids)).astype(np.int32)
        entries = _groups(added, events) if long_tokens else _own(added, events)
        known = entries.event != NO_EVENT
        if not known.all():  # pieces that the target cannot spell begin no event
            entries = _Entries(*(column[known] for column in entries))
        ends = np.arange(len(added), len(longer), dtype=np.int32)
        event = np.concatenate((entries.event, np.full(len(ends), END_EVENT, np.int32)))
        piece = np.concatenate((entries.piece, ends))
        aside = np.concatenate((entries.aside, np.zeros(len(ends), np.bool_)))
        # Pieces in order of token, so that a row is read from its beginning to its end.
        ascending = np.argsort(longer)
        self.longer: IntArray = longer[ascending]
        piece = np.argsort(ascending).astype(np.int32)[piece]
        # The entries of one event side by side.
        order = np.argsort(event, kind="stable")
        self._piece: IntArray = piece[order]
        self._weight = np.where(aside[order], np.float32(ASIDE), np.float32(1.0))
        self._spans = _Spans(event[order], events.count)

    @property
    def size(self) -> int:
        """Entries of the table, for the budget of a cache."""
        return len(self.longer) + 2 * len(self._piece) + self._spans.size

    def spans(self, wanted: IntArray) -> tuple[Places, Places]:
        """Where the entries of each wanted event begin, and how many it has, shape (n,) each."""
        return self._spans.find(wanted)

    def entries(self, places: Places) -> tuple[IntArray, npt.NDArray[np.float32]]:
        """The piece of each entry, by its place in `longer`, and its weight."""
        return self._piece.take(places), self._weight.take(places)


def share(covers: Sequence[Cover], wanted: IntArray, prior: FloatArray) -> Shares:
    """Shares the pieces of each cover among events.

    All covers together, since with a few hundred events the calls of numpy are what costs.

    Args:
        covers: at least one.
        wanted: events, shape (n,); NO_EVENT gets nothing.
        prior: the target's probability of each, shape (n,).
    """
    size = len(wanted)
    if not size:
        return Shares(np.empty(0, np.intp), (), np.empty(0))
    spans = [cover.spans(wanted) for cover in covers]
    counts = np.concatenate([count for _, count in spans])
    ends = counts.cumsum()
    # The entries of the wanted events alone, those of one event behind those of the other.
    entry = (np.concatenate([start for start, _ in spans]) + counts - ends).repeat(counts)
    entry += np.arange(len(entry))
    places = np.concatenate((np.arange(size),) * len(covers)).repeat(counts)
    pieces, groups, weights = [], [], []
    low = before = 0
    for cover, high in zip(covers, ends[size - 1 :: size].tolist(), strict=True):
        piece, weight = cover.entries(entry[low:high])
        pieces.append(cover.longer.take(piece))
        groups.append(piece + before)
        weights.append(weight)
        low, before = high, before + len(cover.longer)
    group = np.concatenate(groups)
    parts = np.concatenate(weights) * prior.take(places)
    # Where the target has all of a group at 0, nobody gets anything.
    parts /= np.maximum(np.bincount(group, parts).take(group), _LEAST)
    return Shares(places, tuple(pieces), parts)


def credit(
    shares: Shares, rows: Sequence[Probabilities], factors: Sequence[float], size: int
) -> FloatArray:
    """What the pieces give to each wanted event.

    Args:
        shares: of the pieces.
        rows: the proxy's probabilities for each cover, shape (proxy vocabulary,).
        factors: on each row.
        size: number of wanted events.
    """
    given = [
        row.take(pieces) * np.float64(factor)
        for row, pieces, factor in zip(rows, shares.pieces, factors, strict=False)
    ]
    if not given:
        return np.zeros(size)
    # Of no entries at all numpy counts integers.
    said = np.bincount(shares.places, np.concatenate(given) * shares.parts, minlength=size)
    return said.astype(np.float64, copy=False)


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
    intervals in order of length leaves each rank with the length of the longest piece of all.
    """
    spans = np.array([events.interval(part) for part in added], np.int32).reshape(-1, 2)
    sizes = spans[:, 1] - spans[:, 0]
    lengths = np.fromiter(map(len, added), np.int32, len(added))
    longest = np.zeros(len(events.of_rank), dtype=np.int32)
    for place in sorted(np.flatnonzero(sizes).tolist(), key=lengths.__getitem__):
        longest[spans[place, 0] : spans[place, 1]] = lengths[place]
    piece = np.repeat(np.arange(len(added), dtype=np.int32), sizes)
    ends = np.cumsum(sizes)
    rank = np.arange(len(piece), dtype=np.int32)
    rank += np.repeat(spans[:, 0] - (ends - sizes), sizes).astype(np.int32)
    alone = np.flatnonzero(sizes == 0).astype(np.int32)
    first = np.fromiter((events.first(added[place]) for place in alone), np.int32, len(alone))
    return _Entries(
        np.concatenate((events.of_rank[rank], first)),
        np.concatenate((piece, alone)),
        np.concatenate((longest[rank] > lengths[piece], np.zeros(len(alone), np.bool_))),
    )


class _Spans:
    """Finds the entries of an event: by a table of all events if they are many.

    Args:
        event: of each entry, ascending.
        events: number of all events.
    """

    def __init__(self, event: IntArray, events: int) -> None:
        keys, starts, counts = np.unique(event, return_index=True, return_counts=True)
        self._keys: IntArray | None = None
        if len(keys) * 4 > events:
            # One more for NO_EVENT (-1), which has no entries.
            self._starts, self._counts = np.zeros((2, events + 1), np.intp)
            self._starts[keys], self._counts[keys] = starts, counts
        else:
            # Behind the last key stands one that is never wanted.
            self._keys = np.append(keys, np.int32(events))
            self._starts, self._counts = np.append(starts, 0), np.append(counts, 0)

    @property
    def size(self) -> int:
        """Entries of 4 bytes in memory."""
        return 4 * len(self._starts) + (0 if self._keys is None else len(self._keys))

    def find(self, wanted: IntArray) -> tuple[Places, Places]:
        """See `Cover.spans`."""
        if self._keys is None:
            return self._starts.take(wanted), self._counts.take(wanted)
        places = self._keys.searchsorted(wanted)
        places[self._keys.take(places) != wanted] = len(self._keys) - 1
        return self._starts.take(places), self._counts.take(places)
