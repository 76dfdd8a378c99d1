"""A proxy's probabilities projected onto the tokens of the target, by bytes, with healing.

Cross-Architecture Proxy Tuning (Ronaghi et al. 2026) carried from strings to bytes, and from the
first sub-token to all pieces: see docs/method.md. In order: the query about some candidates and
what a proxy shows; the token events of a target; which pieces of a proxy cover which events; the
projection; the identity where two models share one vocabulary.

An event is "the target's tokenization of what follows starts with these bytes". Tokens with the
same bytes share an event, all tokens that end a generation are one event, and control tokens have
none.

A piece often leaves open which token comes: "card" may be the token "card", or the beginning of
"cardiac". Its mass is shared among all of them in proportion to the target's own probabilities, so
that the proxy says how likely the group is, and the target who in the group. A token that a longer
piece begins as well takes next to nothing from the shorter one: a proxy that writes "cardiac" with
"cardi" does not write it with "card". With no bytes there, this is the projection of a row. With
the bytes of the proxy's last pieces there, it is their healing: a longer piece that starts with
these bytes counts by what it adds. One table serves both.

A proxy stands at its own canonical tokens of a text that grows: see `CanonicalContext`.
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

# Keeps an underflow from dividing by 0, and changes nothing else.
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class CandidateQuery:
    """Tokens of the target whose probability under a proxy is wanted.

    The same query goes to expert and base, so what depends on neither of them is kept with it.

    Attributes:
        wanted: the event or token that stands for each, shape (n,); negative where the proxies
            have no say.
        prior: the target's probability of each token, shape (n,).
        prepared: the shares worked out so far, by the bytes that pieces start after.
    """

    wanted: IntArray
    prior: FloatArray
    prepared: dict[bytes, Shares | None] = field(default_factory=dict)

    @property
    def aligned(self) -> BoolArray:
        """Whether the proxies have a say on each token, shape (n,)."""
        return self.wanted >= 0


class Back(NamedTuple):
    """The place some tokens back, from where a longer piece might have come instead of them.

    Attributes:
        row: the proxy's probabilities there, shape (vocabulary,).
        token: the one that came.
        rest: bytes of all tokens from there on.
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
        # Events are numbered in order of token, behind the end event: tokens with low ids are the
        # common ones, so what belongs to them stands together in memory.
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
        self.count = len(self._event_of_piece) + 1
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
        if text in self._event_of_piece:
            return self._event_of_piece[text]
        if text not in self._first:
            self._first[text] = NO_EVENT
            for size in range(len(text), 0, -1):
                with contextlib.suppress(UnspellableByte):
                    token = self.tokenizer.encode(text[:size], start=False)[0]
                    self._first[text] = int(self.of_token[token])
                    break
        return self._first[text]


# What a piece gives to a token that a longer piece begins too. Chosen on clinical notes: 0.003 was
# 2 % better in bits per byte than an equal share, and like 0.001 (docs/results.md).
ASIDE = 0.003
_LEAST = 5e-324

Places: TypeAlias = npt.NDArray[np.intp]


class Shares(NamedTuple):
    """Which part of which piece goes to which place among the wanted events, each (entries,)."""

    places: Places
    pieces: Places
    parts: FloatArray


class PieceMap:
    """Which pieces of a proxy may begin which events, after the bytes `start`.

    For the plain projection `start` is empty, and `end_ids` are the tokens that end a generation.

    Attributes:
        longer: the pieces that begin with `start` and add to it, ends included, ascending, shape
            (m,).
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
        # Pieces in order of token, so that a row is read from its beginning to its end.
        ascending = np.argsort(longer)
        self.longer: Places = longer[ascending].astype(np.intp)
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

    def share(self, wanted: IntArray, prior: FloatArray) -> Shares | None:
        """Shares the pieces among events, shape (n,), by the target's probability of each.

        NO_EVENT gets nothing. None where no piece begins any of them.
        """
        starts, counts = self._spans.find(wanted)
        ends = counts.cumsum()
        if not len(ends) or not ends[-1]:
            return None
        # The entries of the wanted events alone, those of one event behind those of the other.
        entry = (starts + counts - ends).repeat(counts)
        entry += np.arange(len(entry))
        places = np.arange(len(wanted)).repeat(counts)
        group = self._piece.take(entry).astype(np.intp)
        parts = self._weight.take(entry) * prior.take(places)
        # Where the target has all of a group at 0, nobody gets anything.
        parts /= np.maximum(np.bincount(group, parts), _LEAST).take(group)
        return Shares(places, self.longer.take(group), parts)


def _groups(added: list[bytes], events: TargetEvents) -> tuple[IntArray, IntArray, BoolArray]:
    """Pairs of an event and a piece that may begin it, and whether a longer piece may, too.

    Each piece stands for all events that begin with its bytes, or, if there are none, its first
    one. The events that begin with given bytes are an interval of the sorted events; painting the
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
    aside = np.concatenate((longest[rank] > lengths[piece], np.zeros(len(alone), np.bool_)))
    event = np.concatenate((events.of_rank[rank], first))
    known = event != NO_EVENT  # pieces that the target cannot spell begin no event
    return event[known], np.concatenate((piece, alone))[known], aside[known]


class _Spans:
    """Finds the entries of an event among `events`: by a table of all if they are many."""

    def __init__(self, event: IntArray, events: int) -> None:
        starts = np.flatnonzero(np.diff(event, prepend=NO_EVENT - 1))
        keys, counts = event[starts], np.diff(starts, append=len(event))
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
        """Where the entries of each event begin, and how many there are."""
        if self._keys is None:
            return self._starts.take(wanted), self._counts.take(wanted)
        places = self._keys.searchsorted(wanted)
        places[self._keys.take(places) != wanted] = len(self._keys) - 1
        return self._starts.take(places), self._counts.take(places)


# Added to the probabilities of both proxies before they are compared. A base that never met a
# word gives it 1e-8 where the expert gives it 1e-3: that is no evidence of 12 nats. Chosen on
# clinical notes (docs/results.md).
FLOOR = 1e-6
# How many pieces back a longer piece may begin. The third one back still helped, the fifth did not.
DEPTH = 3
# Entries of healing tables that are kept: 4 bytes each.
_CACHE_ENTRIES, _EMPTY = 4_000_000, 50


class Projection:
    """Different vocabularies: byte prefixes, with the healing of the proxy's last pieces.

    Attributes:
        follows_tokens: whether the proxy takes the target's tokens as they are.
        depth: how many tokens back it looks.
        floor: added to the probabilities of both proxies before they are compared.
    """

    follows_tokens = False
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
            start: whether they begin a text whose leading space is the tokenizer's own.
        """
        return CandidateQuery(self._events.of(tokens, start=start), prior)

    def probability(
        self, query: CandidateQuery, row: Row, behind: Sequence[Back] = ()
    ) -> FloatArray:
        """The probability of each token in query, shape (n,); 0 where there is no say.

        `row` has the proxy's probabilities after the text, `behind` those one token back, two, ...
        The text so far may have been covered otherwise than by the proxy's own tokens y_1..y_n: by
        the first n-k of them and one piece u that goes beyond the text. With p(u) from the row
        there, all these coverings are mixed by their probabilities, each divided by that of
        y_1..y_n:

            [plain(row) + sum_k sum_u p(u) / (p(y_n-k+1) .. p(y_n)), credited by what u adds]
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
            # Expert and base often stand at the same pieces, and share them alike.
            if start not in query.prepared:
                query.prepared[start] = pieces.share(query.wanted, query.prior)
            if (shares := query.prepared[start]) is not None:
                places.append(shares.places)
                parts.append(here.take(shares.pieces) * np.float64(factor) * shares.parts)
        said = np.concatenate(parts)
        return np.bincount(np.concatenate(places), said, minlength=len(query.wanted)) / total

    def _healer(self, last: bytes) -> PieceMap | None:
        """The map of what goes on behind some bytes; None where no piece does."""
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
    """One vocabulary for both: the identity. This is proxy tuning (Liu et al. 2024)."""

    follows_tokens = True
    depth = 0
    floor = TINY

    def query(self, tokens: IntArray, prior: FloatArray, *, start: bool = False) -> CandidateQuery:
        """Every token stands for itself."""
        return CandidateQuery(tokens, prior)

    def probability(
        self, query: CandidateQuery, row: Row, behind: Sequence[Back] = ()
    ) -> FloatArray:
        """The proxy's own probabilities."""
        return row[query.wanted].astype(np.float64)


Alignment: TypeAlias = Projection | SharedVocabulary


def fit(proxy: Vocabulary, events: TargetEvents) -> Alignment:
    """The identity for one shared vocabulary, for two the projection."""
    if proxy.same_as(events.tokenizer.vocabulary):
        return SharedVocabulary()
    return Projection(proxy, events)


# No piece that matters begins so far back.
_LONGEST_REST = 24
# Without a safe cut in so many bytes the tokens before the last so many are final.
_LONGEST_TAIL, _OPEN_TAIL = 1024, 256


def rests(pieces: Sequence[bytes]) -> list[bytes]:
    """Bytes of the last piece, of the last two, ..., as far back as a longer piece may begin."""
    found: list[bytes] = []
    rest = b""
    for piece in reversed(pieces):
        rest = piece + rest
        if len(rest) > _LONGEST_REST:
            break
        found.append(rest)
    return found


def _boundary(tail: bytes, pieces: Sequence[bytes]) -> int:
    """Where a token begins, and a character, at least `_OPEN_TAIL` bytes before the end."""
    at = len(tail)
    for piece in reversed(pieces):
        at -= len(piece)
        if 0 < at <= len(tail) - _OPEN_TAIL and tail[at] & 0xC0 != 0x80:
            return at
    return 0


class CanonicalContext:
    """Fixed tokens in front, and the canonical tokens of a text that grows behind them.

    A tokenizer that puts a space in front of a text is met half-way: before the text begins, the
    context already holds that space as a piece, so that healing can take it for what it is, the
    beginning of the first word.

    Args:
        tokenizer: of the proxy.
        head: tokens that stay (scaffolding, earlier turns).
        text: what the growing text holds already.
        start: whether the text begins a sequence or follows a control token.

    Attributes:
        tokens: all tokens now; do not change it.
        fixed: number of tokens in `head`.
        text: the growing text, without the head and without a leading space of the tokenizer.
        stable: how many tokens at the front stay as they are, whatever text comes.
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
        self._cut = 0  # in the text, behind the stable tokens
        self.stable = self.fixed
        self._whole = True  # whether the tokens behind the cut hold all bytes
        self._rests: tuple[int, list[bytes]] = (0, [])
        self.append(text)

    def copy(self) -> CanonicalContext:
        """The same, to go on from or to return to."""
        other = copy.copy(self)
        other.tokens = list(self.tokens)
        return other

    def rests(self, depth: int) -> list[bytes]:
        """Bytes of the last token of the growing text, of the last two, ...; at most `depth`.

        The first token of all has nothing before it and is left out.
        """
        if depth != self._rests[0]:
            last = self.tokens[max(self.fixed, 1, len(self.tokens) - depth) :]
            self._rests = depth, rests(list(map(self._tokenizer.vocabulary.piece, last)))
        return self._rests[1]

    def append(self, text: bytes) -> int:
        """Adds text; returns how many tokens at the front stayed as they were."""
        tail = self.text[self._cut :]
        # Whether the tokens that are there stay as they are, whatever comes.
        if tail and self._whole and self._tokenizer.last_cut(tail[-1:] + text[:1]) == 1:
            self._cut, self.stable = len(self.text), len(self.tokens)
        self.text += text
        self._rests = 0, []
        tail, first = self.text[self._cut :], self._start and self._cut == 0
        new: list[int] = []
        self._whole = True
        if tail:
            # The answer is not the proxy's: what it has no token for, it does not see.
            new, self._whole = self._tokenizer.encode_known(tail, start=first)
            self.unseen |= not self._whole
        elif not self.text and first and self._tokenizer.lead:
            new = list(self._tokenizer.lead_tokens)
        kept = self.stable
        same = common_length(self.tokens[kept:], new)
        self.tokens[kept + same :] = new[same:]
        if self.text and self._whole:
            self._advance_cut(tail, new)
        return kept + same

    def _advance_cut(self, tail: bytes, new: list[int]) -> None:
        """Moves the safe cut forward, to a place where a token begins."""
        cut = self._tokenizer.last_cut(tail)
        # Counted from the end, where no leading space of the tokenizer can be.
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
