"""The projection against its definition, in exact fractions, on random toy vocabularies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.alignment import (
    _EMPTY,
    DEPTH,
    END_EVENT,
    NO_EVENT,
    SHORTER_PIECE_WEIGHT,
    CandidateQuery,
    EarlierRow,
    Projection,
    rests,
)
from capt_local.tokenization import Vocabulary
from tests.alignment.slow import events_of, slow_probability, text_ids
from tests.fakes import make_vocabulary

WORDS = st.lists(st.text(alphabet="ab ", min_size=2, max_size=5), min_size=1, max_size=12)
REPEATS = st.lists(st.sampled_from(["a", "b", " "]), max_size=2)


def words(drawn: Sequence[str], repeats: Sequence[str] = ()) -> Vocabulary:
    return make_vocabulary([*drawn, "a", "b", " ", *repeats], all_bytes=False)


def view(
    proxy: Vocabulary, rows: Sequence[np.ndarray], last: Sequence[int]
) -> tuple[np.ndarray, list[EarlierRow]]:
    """What a proxy shows whose last tokens were these, the very last one first."""
    behind = rests([proxy.piece(token) for token in reversed(last)])
    return rows[0], [EarlierRow(*each) for each in zip(rows[1:], last, behind, strict=True)]


@settings(max_examples=150)
@given(WORDS, WORDS, REPEATS, REPEATS, st.integers(0, 2**16), st.integers(0, DEPTH))
def test_projection_is_its_definition(
    own: list[str],
    other: list[str],
    twins: list[str],
    more: list[str],
    seed: int,
    depth: int,
) -> None:
    target, proxy = words(own, twins), words(other, more)
    events, rng = events_of(target), np.random.default_rng(seed)
    rows = rng.dirichlet(np.full(len(proxy), 0.3), size=depth + 1).astype(np.float32)
    last = rng.choice(text_ids(proxy), size=depth).tolist()
    tokens = np.flatnonzero(rng.random(len(target)) < 0.7).astype(np.int32)
    prior = rng.dirichlet(np.full(len(target), 0.3))[tokens]
    prior[rng.random(len(prior)) < 0.2] = 0.0
    question = Projection(proxy, events).query(tokens, prior)
    got = Projection(proxy, events).probability(question, *view(proxy, rows, last))
    wanted = slow_probability(proxy, events, question.wanted, prior, rows, last)
    np.testing.assert_allclose(got, [float(one) for one in wanted], rtol=2e-5, atol=1e-12)
    assert (got[question.wanted == NO_EVENT] == 0.0).all()


@settings(max_examples=150)
@given(WORDS, st.integers(0, 2**16), st.data())
def test_healing_stays_exact_where_what_came_was_next_to_impossible(
    other: list[str], seed: int, data: st.DataObject
) -> None:
    """A surprised proxy: its tokens had 1e-38 or nothing; no overflow, and no NaN."""
    target, proxy = words(["ab", "ba", "abab"]), words(other)
    events, rng = events_of(target), np.random.default_rng(seed)
    depth = data.draw(st.integers(1, DEPTH))
    scale = st.sampled_from([0.0, 1e-45, 1e-38, 1e-30, 1e-12, 1.0])
    rows = rng.dirichlet(np.ones(len(proxy)), size=depth + 1).astype(np.float32)
    last = rng.choice(text_ids(proxy), size=depth).tolist()
    for row, token in zip(rows[1:], last, strict=True):
        row[token] = np.float32(row[token] * data.draw(scale))
    tokens = np.arange(len(target), dtype=np.int32)
    prior = rng.dirichlet(np.ones(len(target)))
    made = Projection(proxy, events)
    question = made.query(tokens, prior)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        got = made.probability(question, *view(proxy, rows, last))
    wanted = slow_probability(proxy, events, question.wanted, prior, rows, last)
    np.testing.assert_allclose(got, [float(one) for one in wanted], rtol=2e-5, atol=1e-12)


def shared(
    target: Sequence[str], proxy: Sequence[str], prior: dict[str, float]
) -> dict[tuple[str, str], float]:
    """What each piece of the proxy gives to the events that have a prior, by their bytes."""
    events, other = events_of(words(target)), words(proxy)
    wanted = np.array([events.of_piece(text.encode()) for text in prior], dtype=np.int32)
    made, query = Projection(other, events), CandidateQuery(wanted, np.array([*prior.values()]))
    found = {}
    for token in text_ids(other):
        sure = (np.arange(len(other)) == token).astype(np.float32)
        for event, share in zip(prior, made.probability(query, sure).tolist(), strict=True):
            if share:
                found[event, other.piece(token).decode()] = share
    return found


def test_a_piece_is_shared_in_proportion_to_what_the_target_says() -> None:
    got = shared(["ab", "abb", "aba"], ["ab"], {"ab": 0.1, "abb": 0.6, "aba": 0.3, "b": 0.9})
    assert got == pytest.approx(
        {("ab", "ab"): 0.1, ("abb", "ab"): 0.6, ("aba", "ab"): 0.3, ("b", "b"): 1.0}
        # "a" begins only what "ab" begins, too: what is put aside is shared in the same way.
        | {("ab", "a"): 0.1, ("abb", "a"): 0.6, ("aba", "a"): 0.3}
    )


def test_a_piece_leaves_what_a_longer_one_begins_to_that_one() -> None:
    got = shared(["ab", "abba"], ["ab", "abb"], {"ab": 0.5, "abba": 0.5})
    assert got["abba", "abb"] == 1.0
    assert got["abba", "ab"] == pytest.approx(
        SHORTER_PIECE_WEIGHT / (1 + SHORTER_PIECE_WEIGHT), rel=1e-6
    )
    assert got["ab", "ab"] == pytest.approx(1 / (1 + SHORTER_PIECE_WEIGHT), rel=1e-6)


def test_all_ends_of_the_proxy_go_to_the_ends_of_the_target() -> None:
    proxy = Vocabulary(
        [b"<s>", b"<e>", b"<stop>", b"a", b"b", b" "], [3, 3, 3, 1, 1, 1], end_ids=[1, 2]
    )
    wanted = np.array([END_EVENT, NO_EVENT, END_EVENT], dtype=np.int32)
    query = CandidateQuery(wanted, np.array([0.1, 0.5, 0.3]))
    row = np.array([0.1, 0.2, 0.3, 0.3, 0.1, 0.0], dtype=np.float32)
    got = Projection(proxy, events_of(words([]))).probability(query, row)
    np.testing.assert_allclose(got, [0.125, 0.0, 0.375], rtol=1e-6)


def test_a_longer_word_behind_a_split_one_is_healed() -> None:
    """After "card", the base form gives "iac" nothing; the piece "cardiac" gives it its share."""
    proxy = make_vocabulary(["card", "cardiac", "iac"])
    target = make_vocabulary(["iac", "card"])
    made = Projection(proxy, events_of(target))
    piece = {proxy.piece(t): t for t in range(len(proxy))}
    before, row = np.zeros((2, len(proxy)), dtype=np.float32)
    before[piece[b"card"]], before[piece[b"cardiac"]] = 0.2, 0.6
    row[piece[b"iac"]] = 0.1
    question = made.query(np.array([text_ids(target)[-2]], dtype=np.int32), np.ones(1))
    got = made.probability(question, *view(proxy, [row, before], [piece[b"card"]]))
    np.testing.assert_allclose(got, [(0.2 * 0.1 + 0.6) / 0.8], rtol=1e-6)


def test_a_word_in_three_pieces_is_healed_from_its_beginning() -> None:
    """ "c" "ar" "di" and then "ac": p("cardiac") came three rows ago, p("ardiac") two."""
    proxy = make_vocabulary(["ar", "di", "ac", "cardiac", "ardiac"])
    target = make_vocabulary(["ac"])
    made = Projection(proxy, events_of(target))
    piece = {proxy.piece(t): t for t in range(len(proxy))}
    rows = np.zeros((4, len(proxy)), dtype=np.float32)
    rows[0][piece[b"ac"]] = 0.5
    rows[1][piece[b"di"]] = 0.25
    rows[2][piece[b"ar"]], rows[2][piece[b"ardiac"]] = 0.5, 0.125
    rows[3][piece[b"c"]], rows[3][piece[b"cardiac"]] = 0.5, 0.25
    question = made.query(np.array([len(target) - 1], dtype=np.int32), np.ones(1))
    last = [piece[each] for each in (b"di", b"ar", b"c")]
    got = made.probability(question, *view(proxy, rows, last))
    two, three = 0.125 / (0.5 * 0.25), 0.25 / (0.5 * 0.5 * 0.25)
    np.testing.assert_allclose(got, [(0.5 + two + three) / (1 + two + three)], rtol=1e-6)


def test_the_space_that_the_targets_tokenizer_adds_is_no_part_of_the_first_word() -> None:
    target, proxy = make_vocabulary([" card", "card", " xyz"]), make_vocabulary(["card", "ca"])
    events = events_of(target)
    events.tokenizer.leading_space = b" "
    ids = {target.piece(t): t for t in range(len(target))}
    tokens = np.array([ids[b" card"], ids[b" xyz"], ids[b"a"], 1, 0], dtype=np.int32)
    made = Projection(proxy, events)
    at_start = made.query(tokens, np.full(5, 0.2), start=True)
    assert at_start.wanted[0] == events.of_piece(b"card")
    assert at_start.wanted[1] == NO_EVENT and at_start.wanted[4] == NO_EVENT
    row = np.random.default_rng(0).dirichlet(np.ones(len(proxy))).astype(np.float32)
    later = np.array([ids[b"card"], 0, ids[b"a"], 1, 0], dtype=np.int32)
    wanted = made.probability(made.query(later, np.full(5, 0.2)), row)
    np.testing.assert_allclose(made.probability(at_start, row), wanted, rtol=1e-12)


def test_an_interrupted_lookup_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    events = events_of(make_vocabulary(["ab", "a", "b"]))
    expected = events_of(make_vocabulary(["ab", "a", "b"])).first(b"aba")

    def interrupted(*_: object, **__: object) -> list[int]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(events.tokenizer, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            events.first(b"aba")
    assert events.first(b"aba") == expected != NO_EVENT


def test_healing_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old tables go when the budget is used up; what is asked again is right again."""
    monkeypatch.setattr("capt_local.alignment._CACHE_ENTRIES", 60)
    target, proxy = words(["ab", "abab"]), words(["aa", "ab", "aba", "bab", "bb", " a", " ab"])
    made, fresh = (Projection(proxy, events_of(target)) for _ in range(2))
    tokens = np.arange(len(target), dtype=np.int32)
    rng = np.random.default_rng(0)
    for _ in range(40):
        rows = rng.dirichlet(np.ones(len(proxy)), size=2).astype(np.float32)
        seen = view(proxy, rows, [int(rng.choice(text_ids(proxy)))])
        got = made.probability(made.query(tokens, np.ones(len(target))), *seen)
        fresh._healers.clear()
        wanted = fresh.probability(fresh.query(tokens, np.ones(len(target))), *seen)
        np.testing.assert_array_equal(got, wanted)
        sizes = [each.size if each else _EMPTY for each in made._healers.values()]
        assert made._entries == sum(sizes)
        assert made._entries <= 60 or len(made._healers) == 1
