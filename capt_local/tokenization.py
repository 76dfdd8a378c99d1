"""Vocabularies as bytes, and the tokenization of text.

A token is represented by its bytes alone: alignment, stop strings and display all work on bytes,
because pieces need not be UTF-8 by themselves and may repeat (`Vocabulary`).

llama.cpp's tokenizer is right for well-behaved text. `TextTokenizer` adds what it lacks: text can
continue earlier text without a second leading space; text never becomes control or user-defined
tokens; no byte is lost (neither invalid UTF-8 nor the character that SentencePiece uses for a
space); it knows where a text can be cut without a change of its tokens, and passes long texts to
native code in such parts.
"""

from __future__ import annotations

import copy
import functools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
# Logits, or probabilities: one row over a vocabulary, or several.
Row = npt.NDArray[np.float32]
Rows = npt.NDArray[np.float32]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    size = min(len(first), len(second))
    if first[:size] == second[:size]:
        return size
    return next(i for i in range(size) if first[i] != second[i])


class TokenKind(IntEnum):
    """Kinds of token, numbered as in GGUF files."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_TEXT_KINDS = (TokenKind.NORMAL, TokenKind.USER_DEFINED, TokenKind.BYTE)


class Vocabulary:
    """The bytes, kinds and end tokens of one model.

    The pieces are kept in one buffer with offsets, so that 152,000 tokens take about 2.5 MB.

    Args:
        pieces: the bytes of each token in detokenized text (SentencePiece's word mark is a space);
            empty for tokens without text.
        kinds: a `TokenKind` for each token.
        end_ids: every token that ends a generation.
        bos: the token that starts a sequence, if there is one.
        add_bos: whether the model expects `bos` before a text.
        eos: the token that templates write at the end of a text, if there is one.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        kinds: Sequence[int] | npt.NDArray[np.uint8],
        *,
        end_ids: Iterable[int],
        bos: int | None = None,
        add_bos: bool = False,
        eos: int | None = None,
    ) -> None:
        lengths = np.fromiter((len(piece) for piece in pieces), np.int64, len(pieces))
        self._offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        self._data = b"".join(pieces)
        self._marks = self._offsets.data  # a memoryview: faster to index than an array
        self.kinds: npt.NDArray[np.uint8] = np.asarray(kinds, dtype=np.uint8)
        self.end_ids: IntArray = np.array(sorted(set(end_ids)), dtype=np.int32)
        self.bos = bos
        self.add_bos = add_bos
        self.eos = eos

    def __len__(self) -> int:
        return len(self.kinds)

    def piece(self, token: int) -> bytes:
        """The bytes of a token."""
        return self._data[self._marks[token] : self._marks[token + 1]]

    def pieces(self) -> list[bytes]:
        """The bytes of all tokens, in order of id; a new list."""
        marks = self._offsets.tolist()
        return [self._data[start:end] for start, end in pairwise(marks)]

    def text(self, tokens: Iterable[int]) -> bytes:
        """The bytes of the text tokens among `tokens`, joined; control tokens have no text."""
        return b"".join(self.piece(token) for token in tokens if self.is_text[token])

    @cached_property
    def lengths(self) -> IntArray:
        """Bytes of each token, shape (n,)."""
        return np.diff(self._offsets).astype(np.int32)

    @cached_property
    def is_end(self) -> BoolArray:
        """Whether a token ends a generation, shape (n,)."""
        flags = np.zeros(len(self), dtype=np.bool_)
        flags[self.end_ids] = True
        return flags

    @cached_property
    def is_text(self) -> BoolArray:
        """Whether a token stands for text: not control, not an end, not empty; shape (n,)."""
        return np.isin(self.kinds, _TEXT_KINDS) & ~self.is_end & (self.lengths > 0)

    @cached_property
    def byte_ids(self) -> dict[int, int]:
        """The token of each single byte, by byte value, if there is one."""
        single = np.flatnonzero(self.is_text & (self.lengths == 1))
        # A BYTE token, the tokenizer's fallback, comes last and overrides a NORMAL one.
        order = sorted(single.tolist(), key=lambda token: self.kinds[token] == TokenKind.BYTE)
        return {self.piece(token)[0]: token for token in order}

    def with_end_tokens(self, tokens: Iterable[int]) -> Vocabulary:
        """A copy in which the given tokens are end tokens, too."""
        made = copy.copy(self)
        made.end_ids = np.union1d(self.end_ids, np.array([*tokens], np.int32)).astype(np.int32)
        for name in ("is_end", "is_text", "byte_ids"):  # computed from the end tokens
            made.__dict__.pop(name, None)
        return made

    def same_as(self, other: Vocabulary) -> bool:
        """Whether both have the same bytes, kinds and end tokens under the same ids."""
        return (
            self._data == other._data
            and np.array_equal(self._offsets, other._offsets)
            and np.array_equal(self.kinds, other.kinds)
            and np.array_equal(self.end_ids, other.end_ids)
        )


class PrefixIndex:
    """The text tokens of a vocabulary sorted by bytes, to find all that begin with a prefix.

    These are consecutive, so that a prefix corresponds to an interval.
    152,000 tokens take about 9 MB and a quarter of a second.

    Attributes:
        keys: the bytes of each text token, ascending; equal pieces are adjacent.
        ids: the token of each key, shape (len(keys),); equal keys in order of id.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        pieces = vocabulary.pieces()
        order = sorted(np.flatnonzero(vocabulary.is_text).tolist(), key=pieces.__getitem__)
        self.keys: list[bytes] = [pieces[token] for token in order]
        self.ids: IntArray = np.array(order, dtype=np.int32)

    def interval(self, prefix: bytes) -> tuple[int, int]:
        """The indices [low, high) of all keys that begin with `prefix` (equal ones included)."""
        low = bisect_left(self.keys, prefix)
        stem = prefix.rstrip(b"\xff")
        if not stem:
            return low, len(self.keys)
        # The smallest byte string after all that begin with the prefix.
        behind = stem[:-1] + bytes((stem[-1] + 1,))
        return low, bisect_left(self.keys, behind, lo=low)

    def exact(self, piece: bytes) -> tuple[int, int]:
        """The indices [low, high) of all keys that equal `piece`."""
        low = bisect_left(self.keys, piece)
        return low, bisect_right(self.keys, piece, lo=low)


Tokenize = Callable[..., list[int]]

# Control characters that vocabularies do not merge with other bytes: SentencePiece models encode
# them as one byte token. Text after one is not at the start, so it gets no leading space.
_GUARDS = tuple(bytes((byte,)) for byte in (1, 2, 3, 5, 14, 15))
# Longest part of a text, in bytes, that is passed to llama.cpp at once, if it can be cut.
_PART = 4096
_TEXT_THEN_SPACE = re.compile(rb"(?=(\S) )")
_RUNS = re.compile("[\udc80-\udcff]+|[^\udc80-\udcff]+")
# Cache of short texts: an answer is tokenized word by word, and most words recur.
_SHORT, _KEPT = 24, 4096
# SentencePiece's character for a space; in the text itself it is not a space.
_SPACE_MARK = "\u2581".encode()


class UnspellableByte(ValueError):
    """The vocabulary has no token for a byte of the text."""

    def __init__(self, byte: int) -> None:
        super().__init__(f"the vocabulary cannot spell the byte 0x{byte:02x}")
        self.byte = byte


class TextTokenizer:
    """Turns bytes into tokens of one vocabulary.

    Attributes:
        vocabulary: of the model.
        tokenize: `tokenize(text: bytes, *, special: bool) -> list[int]`, llama.cpp's tokenizer
            without BOS or EOS (see `decoding.proxy.Model.tokenize`).
        leading_space: the space that the tokenizer adds to a text (`add_space_prefix`), or b"".
    """

    def __init__(self, vocabulary: Vocabulary, tokenize: Tokenize) -> None:
        self.vocabulary = vocabulary
        self.tokenize = tokenize
        self._forbidden = self._forbidden_in_text()
        self.leading_space: bytes = (
            b" " if self._bytes(tokenize(b"a", special=False)) == b" a" else b""
        )
        self._no_cut_after = _bytes_before_spaces(vocabulary)
        self._apart = b"" if self.leading_space else _whitespace_apart(vocabulary)
        cuts = b"(?<=[^\\s%b]) " % re.escape(bytes(sorted(self._no_cut_after)))
        if self._apart:
            cuts += b"|(?<=[%b])(?=[^%b])" % (self._apart, self._apart)
        self._cuts = re.compile(cuts)
        self._short = functools.lru_cache(_KEPT)(lambda text: self._encode(text, start=False))

    def encode(self, text: bytes, *, start: bool) -> list[int]:
        """Tokenizes text of a person or a model. Names of control tokens in it stay text.

        Args:
            text: any bytes; invalid UTF-8 becomes byte tokens.
            start: whether the text begins a sequence or follows a control token; then the tokens
                begin with the tokenizer's leading space (`leading_space`), if it has one.

        Returns:
            Tokens whose joined bytes are `text` (after the lead). None is CONTROL, and none is
            USER_DEFINED except white space and single characters, which are no markers.

        Raises:
            UnspellableByte: the vocabulary has no token for one of the bytes.
            TextTooLong: see `Weights.tokenize`.
        """
        if not start and len(text) <= _SHORT:
            return list(self._short(text))
        tokens: list[int] = []
        for part in self._parts(text):
            tokens += self._encode(part, start=start and not tokens)
        return tokens

    def encode_known(self, text: bytes, *, start: bool) -> tuple[list[int], bool]:
        """As `encode`, but drops characters without tokens; and whether none was dropped."""
        try:
            return self.encode(text, start=start), True
        except UnspellableByte:
            known = b"".join([each for each in _characters(text) if self._can_spell(each)])
            return self.encode(known, start=start), False

    def _can_spell(self, character: bytes) -> bool:
        try:
            return bool(self._short(character))
        except UnspellableByte:
            return False

    def _parts(self, text: bytes) -> Iterator[bytes]:
        """Splits a text into parts of at most `_PART` bytes, or more where it cannot be cut."""
        at = 0
        while len(text) - at > _PART:
            cut = at + self.last_cut(text[at : at + _PART])
            if cut == at:
                found = self._cuts.search(text, at + _PART - 1)
                if found is None:
                    break
                cut = found.start()
            yield text[at:cut]
            at = cut
        yield text[at:]

    def _encode(self, text: bytes, *, start: bool) -> list[int]:
        tokens: list[int] = []
        for part, valid in _utf8_parts(text):
            first = start and not tokens
            if valid:
                tokens += self._encode_valid(part, start=first)
            else:
                tokens += self.leading_space_tokens if first else ()
                tokens += [self._byte(byte) for byte in part]
        return tokens

    def forget(self) -> None:
        """Clears the cache, which holds words of earlier texts."""
        self._short.cache_clear()

    @cached_property
    def leading_space_tokens(self) -> tuple[int, ...]:
        """The tokens of the leading space alone."""
        if not self.leading_space:
            return ()
        tokens = self.tokenize(self._guard, special=False)
        return tuple(tokens[: self._tokens_of(self.leading_space, tokens)])

    @cached_property
    def _guard(self) -> bytes:
        """A character after which the tokenizer treats text as the middle of a text."""
        for guard in _GUARDS:
            tokens = self.tokenize(guard + b"a", special=False)
            if self._bytes(tokens) == self.leading_space + guard + b"a":
                return guard
        raise ValueError("this tokenizer has no control character that stays apart")

    def scaffold(self, text: bytes, *, start: bool) -> list[int]:
        """Tokenizes template text, in which names of control tokens become these tokens."""
        return self._split(text, start=start, special=True)

    def last_cut(self, text: bytes) -> int:
        """The last offset at which `text` can be cut without changing its tokens; 0: none.

        A space always begins a token if no piece of the vocabulary has a space after the byte
        before it. Whitespace that llama.cpp splits off (see `_whitespace_apart`) always ends a
        token.
        """
        cut = text.rfind(b" ")
        while cut > 0 and (text[cut - 1] in self._no_cut_after or text[cut - 1 : cut].isspace()):
            cut = text.rfind(b" ", 0, cut)
        body = text.rstrip(self._apart) if self._apart else b""
        return max(cut, 0, *(body.rfind(byte) + 1 for byte in self._apart))

    def _split(self, text: bytes, *, start: bool, special: bool) -> list[int]:
        if not text:
            return []
        if start or not self.leading_space:
            return self.tokenize(text, special=special)
        guard = self._guard
        tokens = self.tokenize(guard + text, special=special)
        return tokens[self._tokens_of(self.leading_space + guard, tokens) :]

    def _tokens_of(self, front: bytes, tokens: list[int]) -> int:
        """The number of leading tokens whose bytes are exactly `front`."""
        seen = b""
        for count, token in enumerate(tokens):
            if seen == front:
                return count
            seen += self.vocabulary.piece(token)
        if seen == front:
            return len(tokens)
        raise ValueError("this tokenizer merges a control character with its neighbours")

    def _forbidden_in_text(self) -> np.ndarray:
        kinds = self.vocabulary.kinds
        forbidden = np.isin(kinds, (TokenKind.CONTROL, TokenKind.UNKNOWN, TokenKind.USER_DEFINED))
        for token in np.flatnonzero(kinds == TokenKind.USER_DEFINED).tolist():
            piece = self.vocabulary.piece(token)
            if piece.isspace() or len(piece.decode("utf-8", "replace")) == 1:
                forbidden[token] = False
        return forbidden | self.vocabulary.is_end

    @cached_property
    def _matched_anywhere(self) -> re.Pattern[bytes]:
        """Matches text that llama.cpp never tokenizes as plain text, the longest first."""
        user_defined = self.vocabulary.kinds == TokenKind.USER_DEFINED
        found = {
            self.vocabulary.piece(token)
            for token in np.flatnonzero(user_defined & self._forbidden).tolist()
        }
        longest_first = sorted(found | {_SPACE_MARK}, key=len, reverse=True)
        return re.compile(b"|".join(map(re.escape, filter(None, longest_first))))

    def _encode_valid(self, text: bytes, *, start: bool) -> list[int]:
        """Tokenizes UTF-8 text; character by character only where llama.cpp's tokens are wrong."""
        tokens = self._split(text, start=start, special=False)
        if self._is_encoding_of(tokens, text, start=start):
            return tokens
        tokens, at = [], 0
        for match in self._matched_anywhere.finditer(text):
            tokens += self._without_markers(text[at : match.start()], start=start and not tokens)
            tokens += self.leading_space_tokens if start and not tokens else ()
            tokens += self._spell(match[0])
            at = match.end()
        return tokens + self._without_markers(text[at:], start=start and not tokens)

    def _without_markers(self, text: bytes, *, start: bool) -> list[int]:
        """Tokenizes text that holds no marker, though merges may still produce one."""
        tokens = self._split(text, start=start, special=False)
        if self._is_encoding_of(tokens, text, start=start):
            return tokens
        result: list[int] = []
        for token in tokens:
            result += (
                self._spell(self.vocabulary.piece(token)) if self._forbidden[token] else [token]
            )
        if self._is_encoding_of(result, text, start=start):
            return result
        return [*(self.leading_space_tokens if start else ()), *self._spell(text)]

    def _is_encoding_of(self, tokens: list[int], text: bytes, *, start: bool) -> bool:
        """Whether the tokens are allowed in text, and their bytes are this text."""
        if not text:
            return not tokens
        wanted = self.leading_space + text if start else text
        return not self._forbidden[tokens].any() and self._bytes(tokens) == wanted

    def _spell(self, piece: bytes) -> list[int]:
        """Tokenizes UTF-8 text character by character, so that no marker can match."""
        tokens: list[int] = []
        for character in piece.decode("utf-8", "replace"):
            text = character.encode()
            single = [] if text == _SPACE_MARK else self._split(text, start=False, special=False)
            fits = bool(single) and self._is_encoding_of(single, text, start=False)
            tokens += single if fits else [self._byte(byte) for byte in text]
        return tokens

    def _byte(self, byte: int) -> int:
        try:
            return self.vocabulary.byte_ids[byte]
        except KeyError:
            raise UnspellableByte(byte) from None

    def _bytes(self, tokens: list[int]) -> bytes:
        return b"".join(map(self.vocabulary.piece, tokens))


def _whitespace_apart(vocabulary: Vocabulary) -> bytes:
    """Whitespace that llama.cpp splits off as USER_DEFINED tokens before any other tokenization.

    In Gemma's vocabulary these are runs of newlines and tabs. llama.cpp tokenizes the text between
    them piece by piece, in a time that grows with the square of their number.
    """
    user_defined = vocabulary.kinds == TokenKind.USER_DEFINED
    pieces = [vocabulary.piece(token) for token in np.flatnonzero(user_defined).tolist()]
    alone = {piece for piece in pieces if piece in (b"\n", b"\t")}
    mixed = {byte for byte in alone for piece in pieces if piece.strip(byte) and byte in piece}
    return b"".join(sorted(alone - mixed))


def _bytes_before_spaces(vocabulary: Vocabulary) -> frozenset[int]:
    """The bytes that directly precede a space inside some piece."""
    found: set[bytes] = set()
    for piece, text in zip(vocabulary.pieces(), vocabulary.is_text.tolist(), strict=True):
        if text and b" " in piece[1:]:
            found.update(_TEXT_THEN_SPACE.findall(piece))
    return frozenset(byte for one in found for byte in one)


def _characters(text: bytes) -> Iterator[bytes]:
    """Characters of what is UTF-8, single bytes of what is not."""
    for part, valid in _utf8_parts(text):
        if valid:
            yield from map(str.encode, part.decode())
        else:
            yield from (part[at : at + 1] for at in range(len(part)))


def _utf8_parts(text: bytes) -> Iterator[tuple[bytes, bool]]:
    """Splits bytes into runs that are UTF-8 (True) and runs that are not (False)."""
    for run in _RUNS.findall(text.decode("utf-8", "surrogateescape")):
        yield run.encode("utf-8", "surrogateescape"), not "\udc80" <= run[0] <= "\udcff"
