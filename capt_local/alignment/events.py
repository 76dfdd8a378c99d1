"""The token events of a target: what a proxy's probabilities are projected onto.

An event is "the target's tokenization of what follows starts with these bytes". Tokens with the
same bytes share an event, all tokens that end a generation are one event, and control tokens have
none.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from capt_local.tokenization.prefix_index import PrefixIndex
from capt_local.tokenization.tokenizer import TextTokenizer, UnspellableByte
from capt_local.tokenization.vocabulary import IntArray

END_EVENT = 0
NO_EVENT = -1


class TargetEvents:
    """The events of one target vocabulary.

    Attributes:
        tokenizer: of the target.
        index: the target's text tokens in byte order.
        of_token: the event of each token, shape (vocabulary,); NO_EVENT for control tokens.
        of_rank: the events of text in byte order, shape (count - 1,).
        count: number of events.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        """Numbers the distinct pieces in order of token, behind the end event.

        Tokens with low ids are the common ones: what belongs to them stands together in memory.
        """
        self.tokenizer = tokenizer
        vocabulary = tokenizer.vocabulary
        self.index = PrefixIndex(vocabulary)
        self._event_of_piece: dict[bytes, int] = {}
        for token in np.sort(self.index.ids).tolist():
            self._event_of_piece.setdefault(vocabulary.piece(token), len(self._event_of_piece) + 1)
        of_place: IntArray = np.fromiter(
            map(self._event_of_piece.__getitem__, self.index.keys), np.int32, len(self.index.keys)
        )
        # Of tokens with the same bytes, which stand side by side, the first.
        distinct = np.diff(of_place, prepend=NO_EVENT) != 0
        self.of_rank: IntArray = of_place[distinct]
        self._ranks: IntArray = (np.cumsum(distinct) - 1).astype(np.int32)
        self.of_token: IntArray = np.full(len(vocabulary), NO_EVENT, dtype=np.int32)
        self.of_token[self.index.ids] = of_place
        self.of_token[vocabulary.end_ids] = END_EVENT
        self._pieces = list(self._event_of_piece)
        self.count = len(self._pieces) + 1
        self._first: dict[bytes, int] = {}

    @cached_property
    def of_first_token(self) -> IntArray:
        """The event of each token where it begins a text, without the tokenizer's own space."""
        lead, found = self.tokenizer.lead, self.of_token.copy()
        if lead:
            low, high = self.index.interval(lead)
            for place in range(low, high):
                piece = self.index.keys[place][len(lead) :]
                found[self.index.ids[place]] = self.of_piece(piece)
        return found

    def of(self, tokens: IntArray, *, start: bool = False) -> IntArray:
        """The event of each token, shape (n,); `start`: see `of_first_token`."""
        return (self.of_first_token if start else self.of_token).take(tokens)

    def of_piece(self, piece: bytes) -> int:
        """The event of exactly these bytes; NO_EVENT if the target has no such token."""
        return self._event_of_piece.get(piece, NO_EVENT)

    def piece(self, event: int) -> bytes:
        """The bytes of an event other than the end."""
        return self._pieces[event - 1]

    def interval(self, text: bytes) -> tuple[int, int]:
        """The events that begin with `text`, as a half-open range of ranks (see `of_rank`)."""
        low, high = self.index.interval(text)
        if low == high:
            return 0, 0
        return int(self._ranks[low]), int(self._ranks[high - 1]) + 1

    def first(self, text: bytes) -> int:
        """The event with which the target's tokenizer begins `text` (not empty).

        Of a text that the target's vocabulary cannot spell: of its longest beginning that it can;
        NO_EVENT if there is none.
        """
        event = self._event_of_piece.get(text)
        if event is None:
            event = self._first.get(text)
        if event is None:
            event = self._first[text] = self._first_of_known(text)
        return event

    def _first_of_known(self, text: bytes) -> int:
        for size in range(len(text), 0, -1):
            try:
                tokens = self.tokenizer.encode(text[:size], start=False)
            except UnspellableByte:
                continue
            return int(self.of_token[tokens[0]])
        return NO_EVENT
