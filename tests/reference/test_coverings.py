"""Prefix probabilities against full enumeration over made-up vocabularies."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.tokenization.vocabulary import PrefixIndex, TokenKind, Vocabulary
from tests.reference.coverings import Coverings
from tests.reference.events import EventTables

ENDS = (1, 2)
LETTERS = st.lists(st.sampled_from(b"ab\xff"), min_size=1, max_size=3).map(bytes)
# Repeats are wanted: a byte token may stand beside a piece of the same byte.
WORDS = st.lists(LETTERS, max_size=6)
TEXTS = st.lists(st.sampled_from(b"ab\xff"), min_size=1, max_size=6).map(bytes)
SEEDS = st.integers(0, 2**32 - 1)


def toy(words: Sequence[bytes]) -> Vocabulary:
    """A control token, two ends, the single bytes, then the words."""
    pieces = [b"<s>", b"", b"<end>", b"a", b"b", b"\xff", *words]
    kinds = [TokenKind.CONTROL] * 3 + [TokenKind.NORMAL] * (len(pieces) - 3)
    return Vocabulary(pieces, kinds, end_ids=ENDS)


class Toy:
    """A proxy whose rows are a random function of all tokens so far."""

    def __init__(self, words: Sequence[bytes], seed: int, *, control: bool = True) -> None:
        self.vocabulary = toy(words)
        self.index = PrefixIndex(self.vocabulary)
        self.head: tuple[int, ...] = ()
        self._seed, self._control = seed, control
        self._rows: dict[tuple[int, ...], np.ndarray] = {}

    def row(self, tokens: tuple[int, ...]) -> np.ndarray:
        if tokens not in self._rows:
            state = zlib.crc32(np.asarray(tokens, np.int64).tobytes(), self._seed)
            logits = np.random.default_rng(state).standard_normal(len(self.vocabulary))
            shares = np.exp(1.5 * logits)
            shares[0] *= self._control
            self._rows[tokens] = (shares / shares.sum()).astype(np.float32)
        return self._rows[tokens]

    def read(self, tails: Sequence[tuple[int, ...]]) -> np.ndarray:
        return np.array([self.row(self.head + tuple(tail)) for tail in tails])

    def coverings(self, **options: float) -> Coverings:
        unlimited = {"width": 10**6, "drop": 0.0, "horizon": 10**6}
        return Coverings(self.index, self.vocabulary.end_ids, self.read, **{**unlimited, **options})

    def brute(self, text: bytes, tokens: tuple[int, ...] = ()) -> float:
        """Z by its definition: every piece that may come next, and so on."""
        if not text:
            return 1.0
        total = 0.0
        for token in np.flatnonzero(self.vocabulary.is_text).tolist():
            piece, chance = self.vocabulary.piece(token), float(self.row(tokens)[token])
            if piece.startswith(text):
                total += chance
            elif text.startswith(piece):
                total += chance * self.brute(text[len(piece) :], (*tokens, token))
        return total

    def brute_end(self, text: bytes, tokens: tuple[int, ...] = ()) -> float:
        """Probability of exactly this text and then an end."""
        row = self.row(tokens)
        if not text:
            return float(row[list(ENDS)].sum())
        return sum(
            float(row[token]) * self.brute_end(text[len(piece) :], (*tokens, token))
            for token in np.flatnonzero(self.vocabulary.is_text).tolist()
            if text.startswith(piece := self.vocabulary.piece(token))
        )


def longest_match(vocabulary: Vocabulary) -> tuple[list[bytes], Callable[[bytes], int]]:
    """Events of a target that always takes the longest token; event 0 is the end."""
    words = sorted({vocabulary.piece(t) for t in np.flatnonzero(vocabulary.is_text).tolist()})

    def first(text: bytes) -> int:
        return 1 + max(
            (place for place, word in enumerate(words) if text.startswith(word)),
            key=lambda place: len(words[place]),
        )

    return words, first


@settings(max_examples=60, deadline=None)
@given(WORDS, TEXTS, SEEDS, st.integers(0, 6))
def test_z_is_the_sum_over_all_tokenizations(
    words: list[bytes], text: bytes, seed: int, cut: int
) -> None:
    model = Toy(words, seed)
    found = model.coverings()
    for part in (text[:cut], text[cut:]):
        found.append(part)
    assert math.exp(found.log_prefix) == pytest.approx(model.brute(text), rel=1e-6)
    assert found.lost == 0.0 and found.bound == 0.0


@settings(max_examples=30, deadline=None)
@given(WORDS, TEXTS, SEEDS)
def test_probabilities_telescope_and_add_up(words: list[bytes], text: bytes, seed: int) -> None:
    model = Toy(words, seed)
    found, nats = model.coverings(), 0.0
    for place in range(0, len(text), 2):
        part = text[place : place + 2]
        nats -= math.log(found.prefix([part])[0])
        found.append(part)
    assert nats == pytest.approx(-found.log_prefix, rel=1e-9)
    overhangs = list(found.overhangs())
    control = sum(
        one.weight * model.row(one.tokens)[0] for one in found.branches if one.end == len(text)
    )
    assert sum(mass for _, mass in overhangs) + found.end() + control == pytest.approx(1.0)
    singles = found.prefix([b"a", b"b", b"\xff"])
    for letter, chance in zip((b"a", b"b", b"\xff"), singles, strict=True):
        added = sum(mass for piece, mass in overhangs if piece.startswith(letter))
        assert added == pytest.approx(chance, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(WORDS, WORDS, st.lists(st.sampled_from(b"ab"), max_size=3).map(bytes), SEEDS)
def test_events_are_those_of_everything_that_may_follow(
    words: list[bytes], target_words: list[bytes], text: bytes, seed: int
) -> None:
    model = Toy(words, seed, control=False)
    target, first = longest_match(toy(target_words))
    tables = EventTables(
        model.index,
        first,
        lambda text: any(word.startswith(text) and word != text for word in target),
        len(target) + 1,
    )
    found = model.coverings()
    found.append(text)
    whole, wanted = model.brute(text), np.zeros(len(target) + 1)
    reach = max(map(len, target))
    for size in range(reach + 1):
        for letters in product(b"ab\xff", repeat=size):
            more = bytes(letters)
            mass = (model.brute if size == reach else model.brute_end)(text + more)
            wanted[first(more) if more else 0] += mass / whole
    assert found.events(tables, mass=0.0) == pytest.approx(wanted, abs=1e-6)
    coarse = found.events(tables, mass=2.0)
    assert coarse[0] == pytest.approx(wanted[0], abs=1e-6)
    mass = sum(share for _, share in found.overhangs()) + found.end()
    assert coarse.sum() == pytest.approx(mass, abs=1e-6)
