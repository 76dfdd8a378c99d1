"""A proxy's probabilities projected onto the tokens of the target, by bytes, with healing.

Cross-Architecture Proxy Tuning (Ronaghi et al. 2026) extended from strings to bytes, and from the
first sub-token to all pieces: see docs/method.md. In this file: the query for some candidates and a
proxy's rows; the token events of a target; the map from a proxy's pieces to events; the projection;
the identity for a shared vocabulary; the canonical tokens of a growing text.

An event is "the target's tokenization of the continuation starts with these bytes". Tokens with the
same bytes share an event, all end-of-generation tokens are one event, and control tokens have no
event.

A piece may be consistent with several tokens: "card" may be the token "card" or the beginning of
"cardiac". Its probability mass is divided among them in proportion to the target's probabilities:
the proxy decides the mass of the group, the target its division. A token of which a longer piece is
a prefix too gets almost nothing from the shorter piece: a proxy that writes "cardiac" with "cardi"
does not write it with "card". A `PieceMap` for the empty string is the projection of a row; for the
bytes of the proxy's last pieces it is their token healing: longer pieces that start with these
bytes count by the bytes that they add.

A proxy is kept at the canonical tokens of the text so far: see `CanonicalContext`.
"""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from capt_local.tokenization import (
    BoolArray,
    FloatArray,
    IntArray,
    PrefixIndex,
    Row,
    TextTokenizer,
    UnspellableByte,
    Vocabulary,
    common_length,
)

# Prevents a division by 0 after an underflow, and changes nothing else.
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class CandidateQuery:
    """Tokens of the target whose probability under the proxies is needed.

    Expert and base get the same query, which caches what depends on neither of them.

    Attributes:
        wanted: the event of each token (with a shared vocabulary the token), shape (n,); negative
            for tokens without an event.
        prior: the target's probability of each token, shape (n,).
        prepared: the shares computed so far, by the `start` bytes of their `PieceMap`.
    """

    wanted: IntArray
    prior: FloatArray
    prepared: dict[bytes, Shares | None] = field(default_factory=dict)

    @property
    def aligned(self) -> BoolArray:
        """Whether each token has an event, and so a probability under the proxies, shape (n,)."""
        return self.wanted >= 0


class EarlierRow(NamedTuple):
    """A position some tokens back, where a longer piece may replace the proxy's last tokens.

    Attributes:
        row: the proxy's probabilities at that position, shape (vocabulary,).
        token: the proxy's token at that position.
        rest: bytes of all tokens from that position on.
    """

    row: Row
    token: int
    rest: bytes


END_EVENT = 0
NO_EVENT = -1


class TargetEvents:
    """The events of one target vocabulary.

    Attributes:
        index: the target's text tokens in byte order.
        of_token: the event of each token, shape (vocabulary,); NO_EVENT for control tokens.
        of_rank: the events of text in byte order, shape (count - 1,).
        count: number of events.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        # Events are numbered by token id, after the end event: low ids are common tokens, whose
        # data is then close together in memory.
        self.tokenizer = tokenizer
        vocabulary = tokenizer.vocabulary
        self.index = PrefixIndex(vocabulary)
        self._event_of_piece: dict[bytes, int] = {}
        for token in np.sort(self.index.ids).tolist():
            self._event_of_piece.setdefault(vocabulary.piece(token), len(self._event_of_piece) + 1)
        of_place: IntArray = np.fromiter(
            map(self._event_of_piece.__getitem__, self.index.keys), np.int32, len(self.index.keys)
        )
        # The first of consecutive tokens with the same bytes.
        distinct = np.diff(of_place, prepend=NO_EVENT) != 0
        self.of_rank: IntArray = of_place[distinct]
        self._ranks: IntArray = (np.cumsum(distinct) - 1).astype(np.int32)
        self.of_token: IntArray = np.full(len(vocabulary), NO_EVENT, dtype=np.int32)
        self.of_token[self.index.ids] = of_place
        self.of_token[vocabulary.end_ids] = END_EVENT
        self.count = len(self._event_of_piece) + 1
        self._first: dict[bytes, int] = {}

    @cached_property
    def of_first_token(self) -> IntArray:
        """The event of each token at the start of a text: without the tokenizer's leading space."""
        leading_space, found = self.tokenizer.leading_space, self.of_token.copy()
        if leading_space:
            low, high = self.index.interval(leading_space)
            for place in range(low, high):
                piece = self.index.keys[place][len(leading_space) :]
                found[self.index.ids[place]] = self.of_piece(piece)
        return found

    def of(self, tokens: IntArray, *, start: bool = False) -> IntArray:
        """The event of each token, shape (n,); `start`: see `of_first_token`."""
        return (self.of_first_token if start else self.of_token).take(tokens)

    def of_piece(self, piece: bytes) -> int:
        """The event of exactly these bytes; NO_EVENT if the target has no such token."""
        return self._event_of_piece.get(piece, NO_EVENT)

    def interval(self, text: bytes) -> tuple[int, int]:
        """The events that begin with `text`, as a half-open range of ranks (see `of_rank`)."""
        low, high = self.index.interval(text)
        if low == high:
            return 0, 0
        return int(self._ranks[low]), int(self._ranks[high - 1]) + 1

    def first(self, text: bytes) -> int:
        """The event of the first token of the target's tokenization of `text` (not empty).

        If the target's vocabulary cannot spell the text: that of the longest prefix it can spell;
        NO_EVENT if there is none.
        """
        if text in self._event_of_piece:
            return self._event_of_piece[text]
        if text not in self._first:
            event = NO_EVENT
            for size in range(len(text), 0, -1):
                with contextlib.suppress(UnspellableByte):
                    event = int(self.of_token[self.tokenizer.encode(text[:size], start=False)[0]])
                    break
            self._first[text] = event  # only now: an interrupt must not leave NO_EVENT behind
        return self._first[text]


# Weight of a piece for a token that a longer piece begins too. Chosen on clinical notes: 0.003 was
# 2 % better in bits per byte than a weight of 1, and the same as 0.001 (docs/results.md).
SHORTER_PIECE_WEIGHT = 0.003
_LEAST = 5e-324

Places: TypeAlias = npt.NDArray[np.intp]


class Shares(NamedTuple):
    """Sparse map from pieces to queried events: indices, pieces and fractions, each (entries,)."""

    places: Places
    pieces: Places
    parts: FloatArray


class PieceMap:
    """Which pieces of a proxy, after the bytes `start`, are consistent with which events.

    For the plain projection `start` is empty, and `end_ids` are the end-of-generation tokens.

    Attributes:
        longer: ids of the pieces that begin with `start` and are longer, and `end_ids`; ascending,
            shape (m,).
    """

    def __init__(
        self, start: bytes, proxy: PrefixIndex, end_ids: IntArray, events: TargetEvents
    ) -> None:
        low, high = proxy.exact(start)[1] if start else 0, proxy.interval(start)[1]
        added = [key[len(start) :] for key in proxy.keys[low:high]]
        longer = np.concatenate((proxy.ids[low:high], end_ids)).astype(np.int32)
        event, piece, aside = _groups(added, events)
        ends = np.arange(len(added), len(longer), dtype=np.int32)
        event = np.concatenate((event, np.full(len(ends), END_EVENT, np.int32)))
        piece = np.concatenate((piece, ends))
        aside = np.concatenate((aside, np.zeros(len(ends), np.bool_)))
        # Pieces in order of id, so that a row is read sequentially.
        ascending = np.argsort(longer)
        self.longer: Places = longer[ascending].astype(np.intp)
        piece = np.argsort(ascending).astype(np.int32)[piece]
        # Entries grouped by event.
        order = np.argsort(event, kind="stable")
        self._piece: IntArray = piece[order]
        self._weight = np.where(aside[order], np.float32(SHORTER_PIECE_WEIGHT), np.float32(1.0))
        self._spans = _Spans(event[order], events.count)

    @property
    def size(self) -> int:
        """Entries of 4 bytes in memory, for the cache's limit."""
        return len(self.longer) + 2 * len(self._piece) + self._spans.size

    def share(self, wanted: IntArray, prior: FloatArray) -> Shares | None:
        """Divides the pieces among events, shape (n,), in proportion to their `prior`.

        NO_EVENT gets nothing. None if no piece is consistent with any of the events.
        """
        starts, counts = self._spans.find(wanted)
        ends = counts.cumsum()
        if not len(ends) or not ends[-1]:
            return None
        # The entries of the wanted events, concatenated.
        entry = (starts + counts - ends).repeat(counts)
        entry += np.arange(len(entry))
        places = np.arange(len(wanted)).repeat(counts)
        group = self._piece.take(entry).astype(np.intp)
        parts = self._weight.take(entry) * prior.take(places)
        # If the target's probability of a whole group is 0, its mass is dropped.
        parts /= np.maximum(np.bincount(group, parts), _LEAST).take(group)
        return Shares(places, self.longer.take(group), parts)


def _groups(added: list[bytes], events: TargetEvents) -> tuple[IntArray, IntArray, BoolArray]:
    """Pairs of an event and a piece consistent with it, and whether a longer piece is, too.

    A piece is paired with all events that begin with its bytes, or, if there are none, with its own
    first event. Events that begin with given bytes are an interval of the sorted events;
    overwriting them in order of length leaves at each rank the length of its longest piece.
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
    aside = np.concatenate((longest[rank] > lengths[piece], np.zeros(len(alone), np.bool_)))
    event = np.concatenate((events.of_rank[rank], first))
    known = event != NO_EVENT  # pieces that the target cannot spell begin no event
    return event[known], np.concatenate((piece, alone))[known], aside[known]


class _Spans:
    """Finds the entries of an event: by a table over all `events` if many have entries."""

    def __init__(self, event: IntArray, events: int) -> None:
        starts = np.flatnonzero(np.diff(event, prepend=NO_EVENT - 1))
        keys, counts = event[starts], np.diff(starts, append=len(event))
        self._keys: IntArray | None = None
        if len(keys) * 4 > events:
            # One more for NO_EVENT (-1), which has no entries.
            self._starts, self._counts = np.zeros((2, events + 1), np.intp)
            self._starts[keys], self._counts[keys] = starts, counts
        else:
            # The last key is a sentinel that is never queried.
            self._keys = np.append(keys, np.int32(events))
            self._starts, self._counts = np.append(starts, 0), np.append(counts, 0)

    @property
    def size(self) -> int:
        """Entries of 4 bytes in memory."""
        return 4 * len(self._starts) + (0 if self._keys is None else len(self._keys))

    def find(self, wanted: IntArray) -> tuple[Places, Places]:
        """The start and number of the entries of each event."""
        if self._keys is None:
            return self._starts.take(wanted), self._counts.take(wanted)
        places = self._keys.searchsorted(wanted)
        places[self._keys.take(places) != wanted] = len(self._keys) - 1
        return self._starts.take(places), self._counts.take(places)


# Added to the probabilities of both proxies before they are compared. A base that never saw a word
# in training may give it 1e-8 and the expert 1e-3, which is not a reliable contrast of 12 nats.
# Chosen on clinical notes (docs/results.md).
FLOOR = 1e-6
# How many pieces back healing looks for a longer piece. The third back still helped, not the fifth.
DEPTH = 3
# Limit of the healing tables' cache, in entries of 4 bytes; what an empty table counts.
_CACHE_ENTRIES, _EMPTY = 4_000_000, 50


class Projection:
    """Alignment of different vocabularies by byte prefixes, with healing of the last pieces.

    Attributes:
        shares_vocabulary: whether the proxy has the target's vocabulary and uses its token ids.
        depth: number of last tokens that healing may replace.
        floor: added to the probabilities of both proxies before they are compared.
    """

    shares_vocabulary = False
    depth = DEPTH
    floor = FLOOR

    def __init__(self, proxy: Vocabulary, events: TargetEvents) -> None:
        self._events = events
        self._index = PrefixIndex(proxy)
        self._plain = PieceMap(b"", self._index, proxy.end_ids, events)
        self._healers: OrderedDict[bytes, PieceMap | None] = OrderedDict()
        self._entries = 0

    def query(self, tokens: IntArray, prior: FloatArray, *, start: bool = False) -> CandidateQuery:
        """The query for some tokens of the target.

        Args:
            tokens: ascending, shape (n,).
            prior: the target's probability of each, shape (n,).
            start: whether they begin a text, to which the tokenizer adds a leading space.
        """
        return CandidateQuery(self._events.of(tokens, start=start), prior)

    def probability(
        self, query: CandidateQuery, row: Row, behind: Sequence[EarlierRow] = ()
    ) -> FloatArray:
        """The probability of each token in query, shape (n,); 0 for tokens without an event.

        `row` has the proxy's probabilities after the text, `behind` those one token back, two, ...
        The proxy may cover the text so far not only by its tokens y_1..y_n, but also by the first
        n-k of them and one piece u that extends beyond the text. With p(u) from the row at that
        position, all these coverings are mixed by their probabilities, each relative to that of
        y_1..y_n:

            [plain(row) + sum_k sum_u p(u) / (p(y_n-k+1) .. p(y_n)), given to the bytes u adds]
            / [1 + sum_k sum_u p(u) / (p(y_n-k+1) .. p(y_n))]
        """
        maps, inverse, total = [(b"", self._plain, row, 1.0)], 1.0, 1.0
        for back in behind:
            inverse /= max(float(back.row[back.token]), TINY)
            healer = self._healer(back.rest)
            if healer is not None:
                maps.append((back.rest, healer, back.row, inverse))
                total += float(back.row.take(healer.longer).sum()) * inverse
        places, parts = [np.empty(0, np.intp)], [np.empty(0)]
        for start, pieces, here, factor in maps:
            # Expert and base often end in the same pieces, for which the shares are the same.
            if start not in query.prepared:
                query.prepared[start] = pieces.share(query.wanted, query.prior)
            if (shares := query.prepared[start]) is not None:
                places.append(shares.places)
                parts.append(here.take(shares.pieces) * np.float64(factor) * shares.parts)
        mass = np.concatenate(parts)
        return np.bincount(np.concatenate(places), mass, minlength=len(query.wanted)) / total

    def _healer(self, last: bytes) -> PieceMap | None:
        """The map of the pieces longer than `last` that begin with it; None if there are none."""
        if last in self._healers:
            self._healers.move_to_end(last)
            return self._healers[last]
        found = None
        if self._index.exact(last)[1] < self._index.interval(last)[1]:
            found = PieceMap(last, self._index, np.empty(0, dtype=np.int32), self._events)
        self._healers[last] = found
        self._entries += found.size if found is not None else _EMPTY
        while self._entries > _CACHE_ENTRIES and len(self._healers) > 1:
            oldest = self._healers.popitem(last=False)[1]
            self._entries -= oldest.size if oldest is not None else _EMPTY
        return found


class SharedVocabulary:
    """Alignment of a shared vocabulary: the identity, as in proxy tuning (Liu et al. 2024)."""

    shares_vocabulary = True
    depth = 0
    floor = TINY

    def query(self, tokens: IntArray, prior: FloatArray, *, start: bool = False) -> CandidateQuery:
        """Every token stands for itself."""
        return CandidateQuery(tokens, prior)

    def probability(
        self, query: CandidateQuery, row: Row, behind: Sequence[EarlierRow] = ()
    ) -> FloatArray:
        """The proxy's own probabilities."""
        return row[query.wanted].astype(np.float64)


Alignment: TypeAlias = Projection | SharedVocabulary


def fit(proxy: Vocabulary, events: TargetEvents) -> Alignment:
    """The alignment: the identity if proxy and target share a vocabulary, else the projection."""
    if proxy.same_as(events.tokenizer.vocabulary):
        return SharedVocabulary()
    return Projection(proxy, events)


# Bytes; healing does not look for longer pieces than that.
_LONGEST_REST = 24
# After so many bytes without a safe cut, the tokens before the last so many bytes become final.
_LONGEST_TAIL, _OPEN_TAIL = 1024, 256


def rests(pieces: Sequence[bytes]) -> list[bytes]:
    """Bytes of the last piece, of the last two, ..., of at most `_LONGEST_REST` bytes."""
    found: list[bytes] = []
    rest = b""
    for piece in reversed(pieces):
        rest = piece + rest
        if len(rest) > _LONGEST_REST:
            break
        found.append(rest)
    return found


def _boundary(tail: bytes, pieces: Sequence[bytes]) -> int:
    """A boundary of tokens and characters at least `_OPEN_TAIL` bytes before the end, or 0."""
    at = len(tail)
    for piece in reversed(pieces):
        at -= len(piece)
        if 0 < at <= len(tail) - _OPEN_TAIL and tail[at] & 0xC0 != 0x80:
            return at
    return 0


class CanonicalContext:
    """Fixed tokens, followed by the canonical tokens of a growing text.

    If the tokenizer adds a leading space to a text, the context of an empty text already ends with
    that space as a piece, so that healing can replace it by a first word that begins with the
    space.

    Args:
        tokenizer: of the proxy.
        head: the fixed tokens (scaffolding, earlier turns).
        text: the beginning of the growing text.
        start: whether the text begins a sequence or follows a control token.

    Attributes:
        tokens: all tokens now; read only.
        fixed: number of tokens in `head`.
        text: the growing text, without the head and the tokenizer's leading space.
        stable: number of leading tokens that no further text can change.
        unseen: whether bytes were left out that the vocabulary cannot spell.
    """

    def __init__(
        self, tokenizer: TextTokenizer, head: Sequence[int], text: bytes = b"", *, start: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._start = start
        self.fixed = len(head)
        self.unseen = False
        self.tokens = list(head)
        self.text = b""
        self._cut = 0  # offset in the text at the end of the stable tokens
        self.stable = self.fixed
        self._whole = True  # whether the tokens behind the cut hold all bytes
        self._rests: tuple[int, list[bytes]] = (0, [])
        self.append(text)

    def copy(self) -> CanonicalContext:
        """An independent copy."""
        other = copy.copy(self)
        other.tokens = list(self.tokens)
        return other

    def rests(self, depth: int) -> list[bytes]:
        """Bytes of the last token of the growing text, of the last two, ...; at most `depth`.

        The very first token is left out: no row precedes it.
        """
        if depth != self._rests[0]:
            last = self.tokens[max(self.fixed, 1, len(self.tokens) - depth) :]
            self._rests = depth, rests(list(map(self._tokenizer.vocabulary.piece, last)))
        return self._rests[1]

    def append(self, text: bytes) -> int:
        """Appends text; returns the number of leading tokens that did not change."""
        tail = self.text[self._cut :]
        # The text so far ends at a safe cut, given the first byte of `text`.
        if tail and self._whole and self._tokenizer.last_cut(tail[-1:] + text[:1]) == 1:
            self._cut, self.stable = len(self.text), len(self.tokens)
        self.text += text
        self._rests = 0, []
        tail, first = self.text[self._cut :], self._start and self._cut == 0
        new: list[int] = []
        self._whole = True
        if tail:
            # The target writes the answer; a proxy skips characters that it has no token for.
            new, self._whole = self._tokenizer.encode_known(tail, start=first)
            self.unseen |= not self._whole
        elif not self.text and first and self._tokenizer.leading_space:
            new = list(self._tokenizer.leading_space_tokens)
        kept = self.stable
        same = common_length(self.tokens[kept:], new)
        self.tokens[kept + same :] = new[same:]
        if self.text and self._whole:
            self._advance_cut(tail, new)
        return kept + same

    def _advance_cut(self, tail: bytes, new: list[int]) -> None:
        """Moves the safe cut forward to a token boundary."""
        cut = self._tokenizer.last_cut(tail)
        # Counted from the end, since the first token may hold a leading space of the tokenizer.
        piece = self._tokenizer.vocabulary.piece
        if not cut and len(tail) > _LONGEST_TAIL:
            cut = _boundary(tail, list(map(piece, new)))
        if not cut:
            return
        behind, count = len(tail) - cut, len(new)
        while count and behind > 0:
            count -= 1
            behind -= len(piece(new[count]))
        if behind == 0:
            self._cut += cut
            self.stable += count
