"""Projection of a proxy's probabilities onto the target's token events, with healing.

Cross-Architecture Proxy Tuning (Ronaghi et al. 2026) carried from strings to bytes, and from the
first sub-token to all pieces: see docs/method.md.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

import numpy as np

from capt_local.align.cover import Cover, Shares, credit
from capt_local.align.events import TargetEvents
from capt_local.align.question import FloatArray, Probabilities, Question, View
from capt_local.vocab.prefix_index import PrefixIndex
from capt_local.vocab.vocabulary import IntArray, Vocabulary

# Added to the probabilities of both proxies before they are compared. A base that never met a
# word gives it 1e-8 where the expert gives it 1e-3: that is no evidence of 12 nats. Chosen on
# clinical notes (docs/results.md).
FLOOR = 1e-6
# How many pieces back a longer piece may begin. The third one back still helped, the fifth did not.
DEPTH = 3
# Entries of healing tables that are kept: 4 bytes each.
_CACHE_ENTRIES = 4_000_000

Asked: TypeAlias = Question[Shares]


class Projection:
    """Different vocabularies: byte prefixes.

    Args:
        proxy: the proxy's vocabulary.
        events: of the target.
        long_tokens: tokens that are longer than a piece share in it.
        healing: mix in the pieces that the proxy's last pieces may have been the start of.
    """

    follows_tokens = False
    floor = FLOOR
    most: int | None = None

    def __init__(
        self, proxy: Vocabulary, events: TargetEvents, *, long_tokens: bool, healing: bool
    ) -> None:
        """Builds the table of the plain projection; healing tables are made when needed."""
        self.depth = DEPTH if healing else 0
        self._events = events
        self._index = PrefixIndex(proxy)
        self._long_tokens = long_tokens
        self._plain = self._cover(b"", proxy.end_ids)
        self._healers: OrderedDict[bytes, Cover] = OrderedDict()
        self._entries = 0

    def ask(self, tokens: IntArray, prior: FloatArray, *, start: bool = False) -> Asked:
        """See `Alignment.ask`; what is wanted is the event of each token."""
        return Question(self._events.of(tokens, start=start), prior)

    def probability(self, question: Asked, view: View) -> FloatArray:
        """The probability of each event.

        The text so far may have been covered otherwise than by the proxy's own tokens y_1..y_n: by
        the first n-k of them and one piece u that goes beyond the text. With p(u) from the row
        there, all these coverings are mixed by their probabilities, each divided by that of
        y_1..y_n:

            [plain(row) + sum_k sum_u p(u) / (p(y_n-k+1) .. p(y_n)), credited by what u adds]
            / [1 + sum_k sum_u p(u) / (p(y_n-k+1) .. p(y_n))]
        """
        size = len(question.wanted)
        said = credit(self._shares(question, b"", self._plain), view.row, size)
        total = 1.0
        for back, inverse in view.coverings():
            healer = self._healer(back.rest)
            if len(healer.longer):
                shares = self._shares(question, back.rest, healer)
                said += credit(shares, back.row, size) * inverse
                total += _mass(back.row, healer.longer) * inverse
        said /= total
        return said

    def _shares(self, question: Asked, start: bytes, cover: Cover) -> Shares:
        """Expert and base often stand at the same pieces; then the second finds it done."""
        found = question.prepared.get(start)
        if found is None:
            found = question.prepared[start] = cover.share(question.wanted, question.prior)
        return found

    def _cover(self, start: bytes, end_ids: IntArray) -> Cover:
        return Cover(start, self._index, end_ids, self._events, long_tokens=self._long_tokens)

    def _healer(self, last: bytes) -> Cover:
        cover = self._healers.get(last)
        if cover is None:
            cover = self._healers[last] = self._cover(last, np.empty(0, dtype=np.int32))
            self._entries += cover.size
            while self._entries > _CACHE_ENTRIES and len(self._healers) > 1:
                self._entries -= self._healers.popitem(last=False)[1].size
        else:
            self._healers.move_to_end(last)
        return cover


def _mass(row: Probabilities, pieces: IntArray) -> float:
    return float(row.take(pieces).sum())
