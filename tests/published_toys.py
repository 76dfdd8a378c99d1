"""Vocabularies of a few words in both spellings, and rows with given probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from capt_local.decoding.baselines import Choices, TokenStrings
from capt_local.tokenization import TokenKind, Vocabulary
from tests.fakes import greedy_tokenizer


@dataclass(frozen=True)
class Toy:
    """A vocabulary and its strings. Token 0 is the unknown one, 1 the end, then bytes, words."""

    vocabulary: Vocabulary
    strings: TokenStrings

    def id(self, piece: str) -> int:
        """The token of a word or a byte; of equals the word."""
        pieces = self.vocabulary.pieces()
        return len(pieces) - 1 - pieces[::-1].index(piece.encode())

    def row(self, shares: Mapping[str, float], offset: float = 3.0) -> np.ndarray:
        """Logits of these probabilities; the rest of 1 is spread over all other tokens."""
        count = len(self.vocabulary)
        left = (1.0 - sum(shares.values())) / (count - len(shares))
        logp = np.full(count, np.log(left))
        for piece, share in shares.items():
            logp[self.id(piece)] = np.log(share)
        return (logp + offset).astype(np.float32)

    def logits(self, values: Mapping[str, float]) -> np.ndarray:
        """These logits, and -30 for all other tokens."""
        made = np.full(len(self.vocabulary), -30.0, np.float32)
        for piece, value in values.items():
            made[self.id(piece)] = value
        return made


def spaced(*words: str) -> Toy:
    """A SentencePiece model: byte tokens, and a word mark in front of every text."""
    vocabulary = _vocabulary(words, "</s>", TokenKind.BYTE)
    greedy = greedy_tokenizer(vocabulary, leading_space=b" ")

    def tokenize(text: bytes, *, special: bool) -> list[int]:
        return greedy(text.replace("▁".encode(), b" "), special=special)

    return Toy(vocabulary, TokenStrings(vocabulary, tokenize))


def lettered(*words: str) -> Toy:
    """A byte-level model: no token is of kind BYTE."""
    vocabulary = _vocabulary(words, "<|end|>", TokenKind.NORMAL)
    return Toy(vocabulary, TokenStrings(vocabulary, greedy_tokenizer(vocabulary)))


def _vocabulary(words: tuple[str, ...], end: str, kind: TokenKind) -> Vocabulary:
    pieces = [b"<unk>", end.encode(), *(bytes([byte]) for byte in range(256))]
    pieces += [word.encode() for word in words]
    kinds = [TokenKind.UNKNOWN, TokenKind.CONTROL, *[kind] * 256, *[TokenKind.NORMAL] * len(words)]
    return Vocabulary(pieces, kinds, end_ids=[1])


def best(made: Choices) -> int:
    """The token that is emitted at temperature 0: of the likeliest entry, the first of equals.

    Entries are compared one by one, as published, not the sums over a token.
    """
    return int(made.tokens[np.argmax(made.logp)])


def token_logp(made: Choices, token: int, own: float) -> float:
    """Log-probability of any token that has `own` under the leading model."""
    entries = made.logp[made.tokens == token]
    return float(np.logaddexp.reduce(entries)) if len(entries) else own + made.outside
