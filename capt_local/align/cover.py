"""How the pieces of a proxy, after some bytes that are already there, cover the target's events.

With nothing there, this is the projection of a row: a piece credits the event with which the
target's tokenizer begins its bytes. With the bytes y of the proxy's last piece there, it is the
healing of that piece: a longer piece that starts with y credits the event that begins what it adds
after y. One table serves both.

A target token that is longer than every piece that could start it is credited with the longest
piece that begins it (its first piece): an upper bound of the probability of the whole chain.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from capt_local.align.events import END_EVENT, TargetEvents
from capt_local.vocab.prefix_index import PrefixIndex
from capt_local.vocab.vocabulary import IntArray

FloatArray = npt.NDArray[np.float64]
Probabilities = npt.NDArray[np.float32]


class Cover:
    """Which pieces credit which events, after the bytes `start`.

    Args:
        start: bytes that are already there; empty for the plain projection.
        proxy: the proxy's text tokens in byte order.
        end_ids: tokens of the proxy that end a generation; only for the plain projection.
        events: of the target.
        long_tokens: whether long tokens are credited with their first piece.

    Attributes:
        same: the pieces whose bytes are `start` itself, shape (n,).
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
        """Builds the table; costs about 1 us a piece."""
        low, longer = proxy.exact(start)
        _, high = proxy.interval(start)
        self.same: IntArray = proxy.ids[low:longer]
        added = [key[len(start) :] for key in proxy.keys[longer:high]]
        pieces = proxy.ids[longer:high]
        credited = np.fromiter(map(events.first, added), np.int32, len(added))
        ends = np.full(len(end_ids), END_EVENT, dtype=np.int32)
        credited = np.concatenate((credited, ends))
        order = np.argsort(credited, kind="stable")
        # The pieces of one event side by side, so that one `reduceat` sums them all.
        self.longer: IntArray = np.concatenate((pieces, end_ids))[order].astype(np.int32)
        keys, starts, counts = np.unique(credited[order], return_index=True, return_counts=True)
        self._starts, self._counts = starts.astype(np.intp), counts.astype(np.intp)
        self._sums = _Places(keys, events.count)
        self._long = _Places(np.empty(0, dtype=np.int32), events.count)
        self._long_pieces = np.empty(0, dtype=np.int32)
        if long_tokens:
            painted = _longest_beginnings(added, pieces, events)
            long_events = np.flatnonzero(painted >= 0).astype(np.int32)
            self._long = _Places(long_events, events.count)
            self._long_pieces = painted[long_events]

    @property
    def size(self) -> int:
        """Entries of the table, for the budget of a cache."""
        return len(self.longer) + len(self._long_pieces) + self._sums.size + self._long.size

    def credit(self, row: Probabilities, wanted: IntArray) -> FloatArray:
        """The probability of each wanted event.

        Args:
            row: the proxy's probabilities, shape (proxy vocabulary,).
            wanted: events, shape (n,); NO_EVENT gives 0.

        Returns:
            Shape (n,), not normalised: events overlap where one's bytes begin another's.
        """
        result = np.zeros(len(wanted))
        if len(self._counts):
            places, found = self._sums.find(wanted)
            result[found] = self._sum(row, places)
        if len(self._long_pieces):
            places, found = self._long.find(wanted)
            result[found] += row[self._long_pieces[places]]
        return result

    def _sum(self, row: Probabilities, places: npt.NDArray[np.intp]) -> FloatArray:
        """Probability of all pieces of each event; `places` are places among the events."""
        if not len(places):
            return np.empty(0)
        if len(places) * 4 > len(self._counts):  # most of the table: one pass over all of it
            sums: FloatArray = np.add.reduceat(row[self.longer], self._starts)[places]
            return sums
        counts = self._counts[places]
        ends = np.cumsum(counts)
        # The pieces of the wanted events alone, one event behind the other.
        inside = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
        pieces = self.longer[np.repeat(self._starts[places], counts) + inside]
        few: FloatArray = np.add.reduceat(row[pieces], ends - counts)
        return few


def _longest_beginnings(added: list[bytes], pieces: IntArray, events: TargetEvents) -> IntArray:
    """For each long token the longest piece that begins it.

    The tokens that begin with given bytes are an interval of the sorted events; painting the
    intervals in order of length leaves each token with its longest piece. Tokens that one piece
    covers whole are not long.

    Returns:
        A piece for each event, -1 for those that are not long; shape (events,).
    """
    painted = np.full(events.count, -1, dtype=np.int32)
    for place in sorted(range(len(added)), key=lambda place: len(added[place])):
        low, high = events.index.interval(added[place])
        if low < high:
            painted[events.of_place[low] : events.of_place[high - 1] + 1] = pieces[place]
    covered = {part[:size] for part in added for size in range(1, len(part) + 1)}
    for part in covered:
        event = events.of_piece(part)
        if event >= 0:
            painted[event] = -1
    return painted


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
        if self._table is not None:
            places = self._table[wanted]
            found = places >= 0
        else:
            places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
            found = self._keys[places] == wanted
        return places[found].astype(np.intp), found
