"""Intervals of a sorted vocabulary against looking at every token."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from capt_local.tokenization import PrefixIndex
from tests.fakes import make_vocabulary

PIECE = st.one_of(
    st.binary(min_size=1, max_size=4),
    st.lists(st.sampled_from([0, 97, 254, 255]), min_size=1, max_size=4).map(bytes),
)


@given(st.lists(PIECE, min_size=1, max_size=30), PIECE)
def test_interval_is_every_token_that_begins_so(pieces: list[bytes], prefix: bytes) -> None:
    vocabulary = make_vocabulary(pieces, all_bytes=False)
    index = PrefixIndex(vocabulary)
    text = np.flatnonzero(vocabulary.is_text).tolist()
    for place, matches in (
        (index.interval(prefix), lambda piece: piece.startswith(prefix)),
        (index.exact(prefix), lambda piece: piece == prefix),
        (index.interval(b""), lambda piece: True),
    ):
        low, high = place
        wanted = {token for token in text if matches(vocabulary.piece(token))}
        assert set(index.ids[low:high].tolist()) == wanted


def test_pieces_come_back_whole() -> None:
    pieces = [b"x" * 70, b"\xff\xfe", b"a", b"a", "µg".encode()]
    vocabulary = make_vocabulary(pieces)
    assert vocabulary.pieces()[-5:] == pieces
    assert vocabulary.byte_ids[0xFF] == 2 + 0xFF
    assert vocabulary.text([0, *range(258, 263), 1]) == b"".join(pieces)
