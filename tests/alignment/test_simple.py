"""The alignments that the projection is compared with, against loops over their definitions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.alignment.context import rests
from capt_local.alignment.events import END_EVENT, NO_EVENT
from capt_local.alignment.projection import DEPTH, FLOOR
from capt_local.alignment.published import TokenStrings
from capt_local.alignment.question import Back, View
from capt_local.alignment.simple import FirstPiece, PrefixMass, PublishedMapping, SharedVocabulary
from capt_local.tokenization.prefix_index import PrefixIndex
from capt_local.tokenization.vocabulary import Vocabulary
from tests.alignment.slow import events_of, longer, text_ids, tokenizer_of
from tests.fakes import make_vocabulary
from tests.published_toys import lettered, spaced

WORDS = st.lists(st.text(alphabet="ab ", min_size=1, max_size=5), min_size=1, max_size=10)


def words(drawn: list[str]) -> Vocabulary:
    return make_vocabulary([*drawn, "a", "b", " "], all_bytes=False)


def asked(target: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """All tokens, control tokens and the end among them, and a prior that must not matter."""
    tokens = np.arange(len(target), dtype=np.int32)
    return tokens, np.random.default_rng(5).dirichlet(np.ones(len(target)))


def test_one_vocabulary_is_the_identity() -> None:
    vocabulary = make_vocabulary(["ab", "abc"])
    made, (tokens, prior) = SharedVocabulary(), asked(vocabulary)
    row = np.random.default_rng(0).dirichlet(np.ones(len(vocabulary))).astype(np.float32)
    question = made.ask(tokens[5:9], prior[5:9])
    np.testing.assert_array_equal(made.probability(question, View(row)), row[5:9])
    assert question.has_say.all() and made.follows_tokens and made.depth == 0
    assert made.floor < 1e-30


@settings(max_examples=60)
@given(WORDS, WORDS, st.integers(0, 2**16))
def test_first_piece_is_its_definition(own: list[str], other: list[str], seed: int) -> None:
    target, proxy = words(own), words(other)
    row = np.random.default_rng(seed).dirichlet(np.ones(len(proxy))).astype(np.float32)
    encode = tokenizer_of(proxy).encode
    made = FirstPiece(tokenizer_of(proxy), events_of(target))
    question = made.ask(*asked(target))
    for _ in range(2):  # the second time from the table
        got = made.probability(question, View(row))
        for token in text_ids(target):
            assert got[token] == row[encode(target.piece(token), start=False)[0]]
        assert got[1] == pytest.approx(float(row[proxy.end_ids].sum()), rel=1e-6)
        assert got[0] == 0.0 and not question.has_say[0]


def slow_prefix_mass(proxy: Vocabulary, start: bytes, piece: bytes, row: np.ndarray) -> Fraction:
    """All that begin with `start` and the piece; else the longest that begins the piece."""
    added = longer(proxy, start)
    found = [token for token, text in added.items() if text.startswith(piece)]
    if not found:
        begin = [text for text in added.values() if piece.startswith(text)]
        longest = max(begin, key=len, default=None)
        found = [token for token, text in added.items() if text == longest]
    return sum((Fraction(float(row[token])) for token in found), Fraction(0))


@settings(max_examples=100)
@given(WORDS, WORDS, st.integers(0, 2**16), st.integers(0, DEPTH), st.booleans())
def test_prefix_mass_is_its_definition(
    own: list[str], other: list[str], seed: int, depth: int, surprised: bool
) -> None:
    target, proxy = words(own), words(other)
    rng, events = np.random.default_rng(seed), events_of(target)
    rows = rng.dirichlet(np.full(len(proxy), 0.5), size=depth + 1).astype(np.float32)
    last = rng.choice(text_ids(proxy), size=depth).tolist()
    for row, token in zip(rows[1:], last, strict=True):
        row[token] *= np.float32(1e-36) if surprised else 1
    behind = rests([proxy.piece(token) for token in reversed(last)])
    back = [Back(*each) for each in zip(rows[1:], last, behind, strict=True)]
    made = PrefixMass(PrefixIndex(proxy), proxy.end_ids, events, healing=True)
    question = made.ask(*asked(target))
    got = made.probability(question, View(rows[0], back))

    tiny = Fraction(float(np.finfo(np.float32).tiny))
    for token, event in enumerate(question.wanted.tolist()):
        piece = events.piece(event) if event > END_EVENT else b""
        said, total, weight = Fraction(0), Fraction(1), Fraction(1)
        if event == END_EVENT:
            said = sum((Fraction(float(rows[0][end])) for end in proxy.end_ids), said)
        elif event > END_EVENT:
            said = slow_prefix_mass(proxy, b"", piece, rows[0])
        for each in back:
            weight /= max(Fraction(float(each.row[each.token])), tiny)
            total += weight * sum(Fraction(float(each.row[t])) for t in longer(proxy, each.rest))
            if event > END_EVENT:
                said += weight * slow_prefix_mass(proxy, each.rest, piece, each.row)
        # Sums of many pieces are differences of running sums.
        np.testing.assert_allclose(got[token], float(said / total), rtol=1e-4, atol=1e-9)
    assert (question.wanted == NO_EVENT).sum() == 1


def test_without_healing_nothing_is_looked_for_behind() -> None:
    proxy, target = words(["ab"]), words(["b"])
    index, events = PrefixIndex(proxy), events_of(target)
    assert PrefixMass(index, proxy.end_ids, events, healing=False).depth == 0
    assert PrefixMass(index, proxy.end_ids, events, healing=True).depth == DEPTH
    assert FirstPiece(tokenizer_of(proxy), events).floor == FLOOR


def test_the_published_mapping_looks_up_strings_and_compares_twenty() -> None:
    target, proxy = lettered("card", "iac", "Ġcard"), spaced("▁card", "card", "i")
    made = PublishedMapping(target.strings, proxy.strings)
    tokens = np.array([target.id(each) for each in ("card", "iac")], dtype=np.int32)
    question = made.ask(tokens, np.full(2, 0.5))
    keys = [target.strings.key(token) for token in tokens.tolist()]
    assert question.wanted.tolist() == [proxy.strings.piece(key) for key in keys]
    row = np.random.default_rng(0).dirichlet(np.ones(len(proxy.vocabulary))).astype(np.float32)
    np.testing.assert_array_equal(made.probability(question, View(row)), row[question.wanted])
    assert made.most == 20 and made.depth == 0 and question.has_say.all()
    assert isinstance(made._proxy, TokenStrings)
