"""The projection against its definition, written out in loops, on random toy vocabularies."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.align.events import END_EVENT, TargetEvents
from capt_local.align.fit import fit
from capt_local.align.projection import Projection, SharedVocabulary
from capt_local.vocab.tokenizer import TextTokenizer
from capt_local.vocab.vocabulary import Vocabulary
from tests.fakes import greedy_tokenizer, make_vocabulary

WORDS = st.lists(st.text(alphabet="ab ", min_size=2, max_size=5), min_size=1, max_size=12)
REPEATS = st.lists(st.sampled_from(["a", "b", " "]), max_size=2)


def words(draw_words: list[str], repeats: list[str]) -> Vocabulary:
    return make_vocabulary([*draw_words, "a", "b", " ", *repeats], all_bytes=False)


def events_of(vocabulary: Vocabulary) -> TargetEvents:
    return TargetEvents(TextTokenizer(vocabulary, greedy_tokenizer(vocabulary)))


def text_ids(vocabulary: Vocabulary) -> list[int]:
    return np.flatnonzero(vocabulary.is_text).tolist()


def brute_cover(
    row: np.ndarray,
    start: bytes,
    piece: bytes,
    proxy: Vocabulary,
    target: Vocabulary,
    *,
    long: bool,
) -> float:
    """What the pieces that start with `start` and add to it say about the event `piece`."""
    first = greedy_tokenizer(target)
    added = {
        token: proxy.piece(token)[len(start) :]
        for token in text_ids(proxy)
        if proxy.piece(token).startswith(start) and proxy.piece(token) != start
    }
    total = 0.0
    for token, text in added.items():
        begins = target.piece(first(text, special=False)[0])
        exact = text if any(target.piece(t) == text for t in text_ids(target)) else begins
        total += float(row[token]) * (exact == piece)
    covered = any(text.startswith(piece) for text in added.values())
    starts = [(len(text), token) for token, text in added.items() if piece.startswith(text)]
    if long and starts and not covered:
        size = max(starts)[0]
        # Of repeated pieces the one with the highest id stands last in the sorted vocabulary.
        total += float(row[max(token for length, token in starts if length == size)])
    return total


@settings(deadline=None, max_examples=150)
@given(WORDS, WORDS, REPEATS, REPEATS, st.integers(0, 2**16), st.booleans(), st.booleans())
def test_projection_is_its_definition(
    own: list[str],
    other: list[str],
    twins: list[str],
    more: list[str],
    seed: int,
    long: bool,
    healing: bool,
) -> None:
    target, proxy = words(own, twins), words(other, more)
    rng = np.random.default_rng(seed)
    row, before = (rng.dirichlet(np.full(len(proxy), 0.3)).astype(np.float32) for _ in range(2))
    last = proxy.piece(int(rng.choice(text_ids(proxy))))
    made = Projection(proxy, events_of(target), long_tokens=long, healing=healing)
    tokens = np.array(text_ids(target), dtype=np.int32)
    got = made.probability(made.events(tokens), row, before, last)

    for token, value in zip(tokens.tolist(), got.tolist(), strict=True):
        piece = target.piece(token)
        wanted = brute_cover(row, b"", piece, proxy, target, long=long)
        if healing:
            starting = [t for t in text_ids(proxy) if proxy.piece(t).startswith(last)]
            stayed = sum(float(before[t]) for t in starting if proxy.piece(t) == last)
            mass = sum(float(before[t]) for t in starting)
            if len(starting) > sum(proxy.piece(t) == last for t in starting):
                healed = brute_cover(before, last, piece, proxy, target, long=long)
                wanted = (stayed * wanted + healed) / mass
        np.testing.assert_allclose(value, wanted, rtol=2e-5, atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(WORDS, WORDS, st.integers(0, 2**16))
def test_no_mass_is_lost_or_made(own: list[str], other: list[str], seed: int) -> None:
    """Without long tokens each piece credits exactly one event, so the text mass is kept."""
    target, proxy = words(own, []), words(other, [])
    row = np.random.default_rng(seed).dirichlet(np.full(len(proxy), 0.3)).astype(np.float32)
    made = Projection(proxy, events_of(target), long_tokens=False, healing=False)
    events = np.arange(made.events(np.arange(len(target))).max() + 1, dtype=np.int32)
    got = made.probability(events, row, None, b"")
    np.testing.assert_allclose(got.sum(), row[text_ids(proxy)].sum() + row[1], rtol=1e-5)


def test_all_ends_are_one_event() -> None:
    pieces = [b"<s>", b"<end>", b"<stop>", b"a", b"b"]
    kinds = [3, 3, 3, 1, 1]
    proxy = Vocabulary(pieces, kinds, end_ids=[1, 2], bos=0)
    target = Vocabulary([b"a", b"b", b"ab", b"</s>", b"<eot>"], [1, 1, 1, 3, 3], end_ids=[3, 4])
    made = Projection(proxy, events_of(target), long_tokens=True, healing=True)
    events = made.events(np.array([3, 4], dtype=np.int32))
    assert events.tolist() == [END_EVENT, END_EVENT]
    row = np.array([0.1, 0.2, 0.3, 0.3, 0.1], dtype=np.float32)
    np.testing.assert_allclose(made.probability(events, row, None, b""), [0.5, 0.5], rtol=1e-6)


def test_control_tokens_have_no_event() -> None:
    target, proxy = make_vocabulary(["aa"]), make_vocabulary(["ab"])
    made = Projection(proxy, events_of(target), long_tokens=True, healing=True)
    assert made.events(np.array([0], dtype=np.int32))[0] < 0


def test_one_vocabulary_is_the_identity() -> None:
    vocabulary = make_vocabulary(["ab", "abc"])
    made = fit(make_vocabulary(["ab", "abc"]), events_of(vocabulary))
    assert isinstance(made, SharedVocabulary)
    row = np.random.default_rng(0).dirichlet(np.ones(len(vocabulary))).astype(np.float32)
    tokens = np.arange(len(vocabulary), dtype=np.int32)
    got = made.probability(made.events(tokens), row, None, b"")
    np.testing.assert_array_equal(got, row.astype(np.float64))


def test_a_longer_word_behind_a_split_one_is_healed() -> None:
    """After "card", the base form gives "iac" nothing; the piece "cardiac" gives it its share."""
    proxy = make_vocabulary(["card", "cardiac", "iac"])
    target = make_vocabulary(["iac", "card"])
    made = Projection(proxy, events_of(target), long_tokens=True, healing=True)
    piece = {proxy.piece(t): t for t in range(len(proxy))}
    before = np.zeros(len(proxy), dtype=np.float32)
    before[piece[b"card"]], before[piece[b"cardiac"]] = 0.2, 0.6
    row = np.zeros(len(proxy), dtype=np.float32)
    row[piece[b"iac"]] = 0.1
    wanted = made.events(np.array([text_ids(target)[-2]], dtype=np.int32))
    got = made.probability(wanted, row, before, b"card")
    np.testing.assert_allclose(got, [(0.2 * 0.1 + 0.6) / 0.8], rtol=1e-6)
