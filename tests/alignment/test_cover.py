"""How a piece's mass is shared, against the rule written out in loops and exact fractions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.alignment.projection import (
    ASIDE,
    END_EVENT,
    NO_EVENT,
    PieceMap,
    TargetEvents,
    credit,
)
from capt_local.tokenization.vocabulary import PrefixIndex, Vocabulary
from tests.alignment.slow import events_of, slow_parts
from tests.fakes import make_vocabulary

WORDS = st.lists(st.text(alphabet="ab ", min_size=1, max_size=5), min_size=1, max_size=12)
STARTS = st.sampled_from([b"", b"a", b"ab", b" ", b"b a", b"xx"])


def words(drawn: Sequence[str]) -> Vocabulary:
    """The drawn words, repeats included, and what spells any text of them."""
    return make_vocabulary([*drawn, "a", "b", " "], all_bytes=False)


def cover(proxy: Vocabulary, events: TargetEvents, start: bytes = b"") -> PieceMap:
    ends = np.empty(0, np.int32) if start else proxy.end_ids
    return PieceMap(start, PrefixIndex(proxy), ends, events)


def parts(made: PieceMap, wanted: np.ndarray, prior: np.ndarray, pieces: int) -> np.ndarray:
    """The shares of one map as a table, shape (wanted, proxy vocabulary)."""
    table = np.zeros((len(wanted), pieces))
    if shares := made.share(wanted, prior):
        np.add.at(table, (shares.places, shares.pieces), shares.parts)
    return table


@settings(max_examples=200)
@given(WORDS, WORDS, STARTS, st.data())
def test_sharing_is_its_rule(
    own: list[str], other: list[str], start: bytes, data: st.DataObject
) -> None:
    """Any events in any order, some twice (tokens with the same bytes), some of no chance."""
    events, proxy = events_of(words(own)), words(other)
    wanted = data.draw(st.lists(st.integers(NO_EVENT, events.count - 1), max_size=12))
    chances = st.one_of(st.just(0.0), st.floats(1e-12, 1.0))
    prior = data.draw(st.lists(chances, min_size=len(wanted), max_size=len(wanted)))
    made, asked = cover(proxy, events, start), np.array(wanted, dtype=np.int32)
    slow = slow_parts(start, proxy, events, wanted, prior)
    got = parts(made, asked, np.array(prior), len(proxy))
    for place, pieces in enumerate(slow):
        exact = np.zeros(len(proxy))
        exact[list(pieces)] = [float(part) for part in pieces.values()]
        np.testing.assert_allclose(got[place], exact, rtol=1e-9, atol=0)
    row = np.random.default_rng(0).dirichlet(np.ones(len(proxy))).astype(np.float32)
    shares = made.share(asked, np.array(prior))
    said = credit([(shares, row, 1.0)] if shares else [], len(wanted))
    np.testing.assert_allclose(said, got @ row, rtol=1e-6, atol=1e-12)


def shared(
    target: Sequence[str], proxy: Sequence[str], prior: dict[str, float], start: str = ""
) -> dict[tuple[str, str], float]:
    """Parts by the bytes of event and piece, of events with a given prior."""
    events, other = events_of(words(target)), words(proxy)
    wanted = np.array([events.of_piece(text.encode()) for text in prior], dtype=np.int32)
    made = cover(other, events, start.encode())
    table = parts(made, wanted, np.array(list(prior.values())), len(other))
    return {
        (event, other.piece(piece).decode()): float(table[place, piece])
        for place, event in enumerate(prior)
        for piece in np.flatnonzero(table[place]).tolist()
    }


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
    assert got["abba", "ab"] == pytest.approx(ASIDE / (1 + ASIDE), rel=1e-6)
    assert got["ab", "ab"] == pytest.approx(1 / (1 + ASIDE), rel=1e-6)


def test_all_ends_of_the_proxy_go_to_the_ends_of_the_target() -> None:
    proxy = Vocabulary(
        [b"<s>", b"<e>", b"<stop>", b"a", b"b", b" "], [3, 3, 3, 1, 1, 1], end_ids=[1, 2]
    )
    events = events_of(words([]))
    ends = np.array([END_EVENT, NO_EVENT, END_EVENT], dtype=np.int32)
    shares = cover(proxy, events).share(ends, np.array([0.1, 0.5, 0.3]))
    assert shares is not None
    row = np.array([0.1, 0.2, 0.3, 0.3, 0.1, 0.0], dtype=np.float32)
    np.testing.assert_allclose(credit([(shares, row, 1.0)], 3), [0.125, 0.0, 0.375], rtol=1e-6)
    assert cover(proxy, events, b"a").share(ends, np.full(3, 0.1)) is None
