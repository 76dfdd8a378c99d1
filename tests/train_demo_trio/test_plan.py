"""The stages and the packing of rows."""

from __future__ import annotations

from collections import Counter

import numpy as np

from scripts.train_demo_trio.streams import Packer, Stream


def stream(lengths: list[int], first: int, *, whole: bool) -> Stream:
    """Units whose tokens tell stream and unit."""
    ids = [first + i for i, length in enumerate(lengths) for _ in range(length)]
    starts = np.cumsum([0, *lengths])
    return Stream(np.array(ids, np.uint16), np.ones(len(ids), np.float16), starts, whole)


def test_turns_are_never_cut_and_gaps_are_filled() -> None:
    streams = {
        "turns:x": stream([23] * 40, 1000, whole=True),
        "text": stream([500] * 3, 0, whole=False),
    }
    packer = Packer(streams, {"turns:x": 9.0, "text": 0.001}, 64, seed=1)
    for row in packer.rows(30)[0]:
        found = Counter(int(token) for token in row)
        assert sum(found.values()) == 65
        assert all(count % 23 == 0 for token, count in found.items() if token >= 1000)


def test_a_restored_packer_goes_on_with_the_same_rows() -> None:
    streams = {"a": stream([30] * 9, 0, whole=False), "b": stream([20] * 9, 100, whole=True)}
    epochs = {"a": 1.0, "b": 2.0}
    first = Packer(streams, epochs, 32, seed=5)
    first.rows(7)
    other = Packer(streams, epochs, 32, seed=6)
    other.restore(first.state())
    assert (first.rows(20)[0] == other.rows(20)[0]).all()
