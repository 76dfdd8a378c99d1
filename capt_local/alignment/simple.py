"""Alignments that need no table of events: one vocabulary, first pieces, prefix mass, strings.

All but the first are there to be compared with the projection (docs/results.md).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

import numpy as np

from capt_local.alignment.events import END_EVENT, NO_EVENT, TargetEvents
from capt_local.alignment.projection import DEPTH, FLOOR
from capt_local.alignment.published import TokenStrings
from capt_local.alignment.question import TINY, FloatArray, Probabilities, Question, View
from capt_local.tokenization.prefix_index import PrefixIndex
from capt_local.tokenization.tokenizer import TextTokenizer
from capt_local.tokenization.vocabulary import IntArray

# Candidates of the published method.
_PUBLISHED_CANDIDATES = 20
# Tables of prefix mass that are kept: 8 bytes for each of the target's tokens.
_KEPT_TABLES = 48

Asked: TypeAlias = Question[None]


class SharedVocabulary:
    """One vocabulary for both: the identity. This is proxy tuning (Liu et al. 2024)."""

    follows_tokens = True
    depth = 0
    floor = TINY
    most: int | None = None

    def ask(self, tokens: IntArray, prior: FloatArray, *, start: bool = False) -> Asked:
        """Every token stands for itself."""
        return Question(tokens, prior)

    def probability(self, question: Asked, view: View) -> FloatArray:
        """The proxy's own probabilities."""
        return view.row[question.wanted].astype(np.float64)


class FirstPiece:
    """Each token by the piece with which the proxy's tokenizer begins its bytes.

    The published mapping without its defects: by bytes, and with all ends as one event.
    """

    follows_tokens = False
    depth = 0
    floor = FLOOR
    most: int | None = None

    def __init__(self, proxy: TextTokenizer, events: TargetEvents) -> None:
        """Splits nothing yet: the piece of a token is looked for when it is first asked for."""
        self._proxy = proxy
        self._events = events
        self._pieces: IntArray = np.full(events.count, -2, dtype=np.int32)
        self._pieces[END_EVENT] = -1
        self._end_ids = proxy.vocabulary.end_ids

    def ask(self, tokens: IntArray, prior: FloatArray, *, start: bool = False) -> Asked:
        """See `Alignment.ask`; what is wanted is the event of each token."""
        wanted = self._events.of(tokens, start=start)
        for event in np.unique(wanted[wanted >= 0]):
            if self._pieces[event] == -2:
                text = self._events.piece(int(event))
                self._pieces[event] = self._proxy.encode(text, start=False)[0]
        return Question(wanted, prior)

    def probability(self, question: Asked, view: View) -> FloatArray:
        """The probability of each token's first piece."""
        wanted = question.wanted
        said = view.row[self._pieces[wanted]].astype(np.float64)
        said[wanted == END_EVENT] = view.row[self._end_ids].sum(dtype=np.float64)
        return np.where(wanted >= 0, said, 0.0)


class PrefixMass:
    """Each token by all pieces that begin with its bytes: that the text goes on with them.

    A token longer than all pieces that could begin it gets the longest of these. Tokens are not
    exclusive here: "c" includes all that "card" has.

    Args:
        index: the proxy's text tokens in byte order.
        end_ids: tokens of the proxy that end a generation.
        events: of the target.
        healing: mix in the pieces that the proxy's last pieces may have been the start of.
    """

    follows_tokens = False
    floor = FLOOR
    most: int | None = None

    def __init__(
        self, index: PrefixIndex, end_ids: IntArray, events: TargetEvents, *, healing: bool
    ) -> None:
        """Looks up nothing yet."""
        self.depth = DEPTH if healing else 0
        self._index = index
        self._end_ids = end_ids
        self._events = events
        self._spans: OrderedDict[bytes, IntArray] = OrderedDict()

    def ask(self, tokens: IntArray, prior: FloatArray, *, start: bool = False) -> Asked:
        """See `Alignment.ask`; what is wanted is the event of each token."""
        return Question(self._events.of(tokens, start=start), prior)

    def probability(self, question: Asked, view: View) -> FloatArray:
        """Sums over the pieces, mixed over the coverings as in `Projection.probability`."""
        said, _ = self._credit(question.wanted, view.row, b"")
        total = 1.0
        for back, inverse in view.coverings():
            more, mass = self._credit(question.wanted, back.row, back.rest)
            said += more * inverse
            total += mass * inverse
        return said / total

    def _credit(
        self, wanted: IntArray, row: Probabilities, start: bytes
    ) -> tuple[FloatArray, float]:
        """What the pieces behind `start` give to each event, and what they have together."""
        low = self._index.exact(start)[1] if start else 0
        high = self._index.interval(start)[1]
        if low == high:
            return np.zeros(len(wanted)), 0.0
        sums = np.zeros(high - low + 1)
        row.take(self._index.ids[low:high]).cumsum(dtype=np.float64, out=sums[1:])
        spans = self._table(start, low, high).take(wanted, axis=0)
        said: FloatArray = sums[spans[:, 1]] - sums[spans[:, 0]]
        if start:
            return said, float(sums[-1])
        ends = float(row[self._end_ids].sum(dtype=np.float64))
        return np.where(wanted == END_EVENT, ends, said), 1.0

    def _table(self, start: bytes, low: int, high: int) -> IntArray:
        """For each event the places, from `low` on, of the pieces that begin with `start` and it.

        Where there are none, of the longest piece that begins `start` and the event.
        """
        found = self._spans.get(start)
        if found is not None:
            self._spans.move_to_end(start)
            return found
        by_rank = np.zeros((len(self._events.of_rank), 2), np.int32)
        begun: dict[int, tuple[int, int]] = {}
        # The longer a piece, the later it is painted over the events that begin with it.
        for key in sorted(set(self._index.keys[low:high]), key=len):
            added = key[len(start) :]
            first, last = self._events.interval(added)
            by_rank[first:last] = self._index.exact(key)
            for size in range(1, len(added) + 1):
                event = self._events.of_piece(added[:size])
                if event != NO_EVENT and event not in begun:
                    begun[event] = self._index.interval(key[: len(start) + size])
        found = np.full((self._events.count + 1, 2), low, np.int32)  # the last is NO_EVENT
        found[self._events.of_rank] = np.where(by_rank.any(axis=1, keepdims=True), by_rank, low)
        found[list(begun)] = np.array(list(begun.values()), np.int32).reshape(-1, 2)
        found -= low
        self._spans[start] = found
        if len(self._spans) > _KEPT_TABLES:
            self._spans.popitem(last=False)
        return found


class PublishedMapping:
    """The target's top 20, each by one piece found by its string: the published alignment.

    With all of its defects (docs/baselines.md); the base takes the piece of the expert.
    """

    follows_tokens = False
    depth = 0
    floor = TINY
    most: int | None = _PUBLISHED_CANDIDATES

    def __init__(self, target: TokenStrings, proxy: TokenStrings) -> None:
        """Keeps the strings of both vocabularies."""
        self._target = target
        self._proxy = proxy

    def ask(self, tokens: IntArray, prior: FloatArray, *, start: bool = False) -> Asked:
        """See `Alignment.ask`; what is wanted is the piece of each token."""
        pieces = [self._proxy.piece(self._target.key(token)) for token in tokens.tolist()]
        return Question(np.array(pieces, dtype=np.int32), prior)

    def probability(self, question: Asked, view: View) -> FloatArray:
        """The probability of each piece."""
        return view.row[question.wanted].astype(np.float64)
