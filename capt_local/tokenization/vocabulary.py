"""A model's vocabulary as bytes.

A token is the bytes it stands for, nothing else: alignment, stopping and display all work on
bytes, because pieces need not be UTF-8 by themselves and may repeat. This module knows neither
llama.cpp nor how text is split into tokens.
"""

from __future__ import annotations

import copy
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


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
        pieces: the bytes of each token, as they stand in detokenized text (a leading word mark
            is a space); empty for tokens without text.
        kinds: a `TokenKind` for each token.
        end_ids: every token that ends a generation.
        bos: the token that starts a sequence, if there is one.
        add_bos: whether the model expects `bos` in front of a text.
        eos: the token that templates write where a text ends, if there is one.
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
        self._marks = self._offsets.data  # one number of it is read faster than an array's
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
        """For each byte value the token that stands for that byte alone, where there is one."""
        single = np.flatnonzero(self.is_text & (self.lengths == 1))
        # A BYTE token is what a tokenizer falls back to, so it wins over a NORMAL one ...
        order = sorted(single.tolist(), key=lambda token: self.kinds[token] == TokenKind.BYTE)
        return {self.piece(token)[0]: token for token in order}

    def with_ends(self, tokens: Iterable[int]) -> Vocabulary:
        """The same tokens, of which some more end a generation."""
        made = copy.copy(self)
        made.end_ids = np.union1d(self.end_ids, np.array([*tokens], np.int32)).astype(np.int32)
        for name in ("is_end", "is_text", "byte_ids"):  # computed from the end tokens
            made.__dict__.pop(name, None)
        return made

    def same_as(self, other: Vocabulary) -> bool:
        """Whether both stand for the same bytes under the same ids, ends included."""
        return (
            self._data == other._data
            and np.array_equal(self._offsets, other._offsets)
            and np.array_equal(self.kinds, other.kinds)
            and np.array_equal(self.end_ids, other.end_ids)
        )


class PrefixIndex:
    """Sorted bytes of the text tokens of a vocabulary: from a prefix to all that begin with it.

    All tokens that begin with a prefix stand next to each other, so a prefix is an interval.
    152,000 tokens take about 9 MB and a quarter of a second.

    Attributes:
        keys: the bytes of each text token, ascending; repeated pieces stand side by side.
        ids: the token of each key, shape (len(keys),); equal keys in order of id.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        pieces = vocabulary.pieces()
        order = sorted(np.flatnonzero(vocabulary.is_text).tolist(), key=pieces.__getitem__)
        self.keys: list[bytes] = [pieces[token] for token in order]
        self.ids: IntArray = np.array(order, dtype=np.int32)

    def interval(self, prefix: bytes) -> tuple[int, int]:
        """The places [low, high) of all keys that begin with `prefix` (equal ones included)."""
        low = bisect_left(self.keys, prefix)
        stem = prefix.rstrip(b"\xff")
        if not stem:
            return low, len(self.keys)
        # The first bytes in order that no longer begin with the prefix.
        behind = stem[:-1] + bytes((stem[-1] + 1,))
        return low, bisect_left(self.keys, behind, lo=low)

    def exact(self, piece: bytes) -> tuple[int, int]:
        """The places [low, high) of all keys that equal `piece`."""
        low = bisect_left(self.keys, piece)
        return low, bisect_right(self.keys, piece, lo=low)
