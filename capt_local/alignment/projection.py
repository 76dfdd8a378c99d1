"""Projection of a proxy's probabilities onto the target's token events, with healing.

Cross-Architecture Proxy Tuning (Ronaghi et al. 2026) carried from strings to bytes, and from the
first sub-token to all pieces: see docs/method.md.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

import numpy as np

from capt_local.alignment.cover import Cover, Shares, credit, share
from capt_local.alignment.events import TargetEvents
from capt_local.alignment.question import FloatArray, Question, View
from capt_local.tokenization.prefix_index import PrefixIndex
from capt_local.tokenization.vocabulary import IntArray, Vocabulary

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
        covers, rows, factors, starts = [self._plain], [view.row], [1.0], [b""]
        total = 1.0
        for back, inverse in view.coverings():
            healer = self._healer(back.rest)
            if len(healer.longer):
                covers.append(healer)
                rows.append(back.row)
                factors.append(inverse)
                starts.append(back.rest)
                total += float(back.row.take(healer.longer).sum()) * inverse
        # Expert and base often stand at the same pieces; then the second finds it done.
        shares = question.prepared.get(tuple(starts))
        if shares is None:
            shares = share(covers, question.wanted, question.prior)
            question.prepared[tuple(starts)] = shares
        said = credit(shares, rows, factors, len(question.wanted))
        said /= total
        return said

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
