"""Projection of a proxy's probabilities onto the target's token events, with healing.

The formulas are those of Cross-Architecture Proxy Tuning (Ronaghi et al. 2026) carried from
strings to bytes and from the first sub-token to all pieces: see docs/method.md.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import numpy as np

from capt_local.align.cover import Cover, FloatArray, Probabilities
from capt_local.align.events import TargetEvents
from capt_local.vocab.prefix_index import PrefixIndex
from capt_local.vocab.vocabulary import IntArray, Vocabulary

# Added to the probabilities of both proxies before their ratio is taken. A base that never met a
# word gives it 1e-8 where the expert gives it 1e-3: that is no evidence of 12 nats. Chosen on
# clinical notes (docs/results.md): 1e-5 was best for two trios, 1e-9 cost up to 0.09 bits per byte.
FLOOR = 1e-5
# One vocabulary is proxy tuning to the letter; this only keeps an underflow from dividing by 0.
_TINY = float(np.finfo(np.float32).tiny)
# Entries of healing tables that are kept: 8 bytes each.
_CACHE_ENTRIES = 2_000_000


class Alignment(Protocol):
    """What a proxy's row says about tokens of the target."""

    @property
    def follows_tokens(self) -> bool:
        """Whether the proxy takes the target's tokens as they are (one shared vocabulary)."""
        ...

    @property
    def floor(self) -> float:
        """Probability under which a proxy's opinion counts less and less."""
        ...

    def events(self, tokens: IntArray, *, start: bool = False) -> IntArray:
        """The event of each target token; negative where the proxies have no say.

        Args:
            tokens: of the target, shape (n,).
            start: whether the tokens begin a text whose leading space is the tokenizer's own.
        """
        ...

    def probability(
        self, wanted: IntArray, row: Probabilities, before: Probabilities | None, last: bytes
    ) -> FloatArray:
        """Probability of each event, given the proxy's row (and the one before its last piece)."""
        ...


class SharedVocabulary:
    """One vocabulary for both: the identity. This is proxy tuning (Liu et al. 2024)."""

    follows_tokens = True
    floor = _TINY

    def events(self, tokens: IntArray, *, start: bool = False) -> IntArray:
        """Every token is its own event."""
        return tokens

    def probability(
        self, wanted: IntArray, row: Probabilities, before: Probabilities | None, last: bytes
    ) -> FloatArray:
        """The proxy's own probabilities."""
        return row[wanted].astype(np.float64)


class Projection:
    """Different vocabularies: byte prefixes.

    Args:
        proxy: the proxy's vocabulary.
        events: of the target.
        long_tokens: credit tokens that no piece covers with their first piece.
        healing: mix in the pieces that the proxy's last piece may have been the start of.
    """

    follows_tokens = False
    floor = FLOOR

    def __init__(
        self, proxy: Vocabulary, events: TargetEvents, *, long_tokens: bool, healing: bool
    ) -> None:
        """Builds the table of the plain projection; healing tables are made when needed."""
        self._events = events
        self._index = PrefixIndex(proxy)
        self._long_tokens = long_tokens
        self._healing = healing
        self._plain = self._cover(b"", proxy.end_ids)
        self._healers: OrderedDict[bytes, Cover] = OrderedDict()
        self._entries = 0

    def events(self, tokens: IntArray, *, start: bool = False) -> IntArray:
        """The events of target tokens."""
        return (self._events.of_first_token if start else self._events.of_token)[tokens]

    def probability(
        self, wanted: IntArray, row: Probabilities, before: Probabilities | None, last: bytes
    ) -> FloatArray:
        """The probability of each event.

        With y the last piece, p the row after it and q the row before it, the two coverings of
        the text (y and then a piece; one piece that starts with y) are mixed:

            [q(y) * plain(p) + sum over longer pieces u = y + v of q(u), credited by v]
            / [sum over all pieces that start with y of q]

        Args:
            wanted: events, shape (n,).
            row: probabilities after all tokens, shape (proxy vocabulary,).
            before: probabilities before the last token; None: no healing (as at the beginning of
                a text).
            last: bytes of the last token; empty: no healing.

        Returns:
            Shape (n,).
        """
        plain = self._plain.credit(row, wanted)
        if not self._healing or before is None or not last:
            return plain
        healer = self._healer(last)
        if not len(healer.longer):
            return plain
        stayed = float(before[healer.same].sum(dtype=np.float64))
        mass = stayed + float(before[healer.longer].sum(dtype=np.float64))
        if mass <= 0.0:
            return plain
        return (stayed * plain + healer.credit(before, wanted)) / mass

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
