"""Several texts on one context: each is what it would be alone, whatever runs beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from capt_local.errors import Cancelled, CaptError, ContextOverflow, ModelError, NumericalError
from capt_local.llama.batched import (
    MOST_TOGETHER,
    Lane,
    Lanes,
    Part,
    spans,
)
from capt_local.llama.devices import Kernels
from capt_local.llama.model import LlamaModel
from capt_local.llama.weights import Weights
from tests.llama.conftest import CLOSE, ONE_THREAD, TOKENS

COUNT = 6


@pytest.fixture
def lanes(tiny_path: Callable[..., Path]) -> Iterator[Lanes]:
    with Weights(tiny_path()) as weights:
        made = Lanes(weights, ONE_THREAD, COUNT, name="target")
    yield made
    made.close()


def text(number: int, size: int = 40) -> list[int]:
    return [(token + 11 * number) % 300 for token in TOKENS[:size]]


def rows_of(result: object) -> np.ndarray:
    assert isinstance(result, np.ndarray), result
    return result.copy()


def alone(lane: Lane, tokens: list[int], steps: int) -> list[np.ndarray]:
    """A prompt and single tokens behind it."""
    found = [lane.extend(tokens).copy()]
    for step in range(steps):
        found.append(lane.step([TOKENS[step]]).copy())
    lane.rewind(0)
    return found


def test_a_text_gives_the_same_bits_whatever_runs_beside_it(lanes: Lanes) -> None:
    assert len(lanes.sizes) > 2
    expected = alone(lanes.slots[2], text(2), 12)
    again = alone(lanes.slots[5], text(2), 12)
    assert all(np.array_equal(*pair) for pair in zip(expected, again, strict=True))
    rng = np.random.default_rng(1)
    # Other lanes with texts of other lengths, one longer than the cells that are looked at first.
    busy = {0: 7, 1: 290, 3: 31, 4: 60}
    for number, size in busy.items():
        lanes.slots[number].extend((text(number, 150) + text(number, 150))[:size], rows=0)
    found = [lanes.slots[2].extend(text(2)).copy()]
    for step in range(12):
        others = rng.permutation(list(busy))[: rng.integers(0, 5)]
        parts = [Part(lanes.slots[2], [TOKENS[step]], 1)]
        parts += [
            Part(lanes.slots[other], TOKENS[: rng.integers(1, MOST_TOGETHER + 1)], 1)
            for other in others
        ]
        places = rng.permutation(len(parts))
        results = lanes.run([parts[place] for place in places])
        found.append(rows_of(results[int(np.flatnonzero(places == 0)[0])]))
    assert all(np.array_equal(*pair) for pair in zip(expected, found, strict=True))


def test_a_lane_goes_back_without_the_others(lanes: Lanes) -> None:
    one, two = lanes.slots[:2]
    one.extend(text(1), rows=0)
    two.extend(text(2), rows=0)
    fresh = one.extend(TOKENS[:8], rows=2).copy()
    assert one.rewind(40)
    one.extend(TOKENS[50:70], rows=0)
    assert one.rewind(40) and two.position == 40
    assert np.array_equal(one.extend(TOKENS[:8], rows=2), fresh)
    with pytest.raises(ValueError, match="cannot rewind"):
        two.rewind(41)


def test_what_one_lane_computed_is_there_for_another(lanes: Lanes) -> None:
    one, two = lanes.slots[1], lanes.slots[4]
    one.extend(text(0, 30), rows=0)
    expected = one.extend([5]).copy()
    one.extend(TOKENS[:20], rows=0)
    two.extend(TOKENS[:50], rows=0)
    assert lanes.share(one, two, 30)
    assert two.position == 30
    assert np.array_equal(two.extend([5]), expected)
    assert one.position == 51
    assert not lanes.share(one, one, 5)
    assert not lanes.share(one, two, 52)


def test_what_still_runs_moves_to_the_first_places(lanes: Lanes) -> None:
    running = [lanes.slots[number] for number in (1, 3, 5)]

    def steps(packed: bool) -> list[np.ndarray]:
        for number, lane in enumerate(running):
            lane.rewind(0)
            lane.extend(text(number, 30 + 7 * number), rows=0)
        if packed:
            lanes.slots[0].extend(text(7), rows=0)
            lanes.pack(running)
        calls = ([Part(lane, [TOKENS[at]], 1) for lane in running] for at in range(5))
        return [rows_of(result) for call in calls for result in lanes.run(call)]

    expected, found = steps(packed=False), steps(packed=True)
    assert all(np.array_equal(*pair) for pair in zip(expected, found, strict=True))
    assert sorted(lane.number for lane in running) == [0, 1, 2]
    assert [lane.number for lane in lanes.slots] == list(range(COUNT))
    assert [lane.position for lane in lanes.slots[3:]] == [0] * 3
    lanes.pack(running[:1])  # one alone costs the same wherever it is
    assert sorted(lane.number for lane in running) == [0, 1, 2]


def test_a_part_that_does_not_fit_leaves_the_others_alone(lanes: Lanes) -> None:
    full, other = lanes.slots[0], lanes.slots[1]
    full.extend((TOKENS * 3)[: lanes.limit], rows=0)
    results = lanes.run([Part(full, [1], 1), Part(other, [1], 1)])
    assert isinstance(results[0], ContextOverflow)
    assert results[0].counts == {"target": lanes.limit + 1}
    assert rows_of(results[1]).shape[0] == 1
    assert (full.position, other.position) == (lanes.limit, 1)
    # A full lane still keeps its neighbours company.
    other.extend([2])
    assert full.position == lanes.limit


def test_the_part_that_fails_is_found(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = lanes._context.decode

    def failing() -> None:
        batch = lanes._batch
        if 299 in batch._tokens[: batch.raw.n_tokens]:
            raise ModelError("the backend failed")
        decode()

    expected = alone(lanes.slots[1], text(1), 1)
    lanes.slots[1].extend(text(1), rows=0)
    lanes.slots[0].extend(text(0), rows=0)
    monkeypatch.setattr(lanes._context, "decode", failing)
    parts = [Part(lanes.slots[0], [5, 299], 1), Part(lanes.slots[1], [TOKENS[0]], 1)]
    results = lanes.run(parts)
    assert isinstance(results[0], ModelError)
    assert np.array_equal(rows_of(results[1]), expected[1])
    assert [part.lane.position for part in parts] == [40, 41]


def test_numbers_that_are_none_end_one_text(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = lanes._context.rows

    def spoilt(count: int) -> np.ndarray:
        found = rows(count).copy()
        found[0, 7] = np.nan
        return found

    monkeypatch.setattr(lanes._context, "rows", spoilt)
    results = lanes.run([Part(lane, [1], 1) for lane in lanes.slots[:3]])
    assert isinstance(results[0], NumericalError)
    assert not any(isinstance(result, CaptError) for result in results[1:])
    assert [lane.position for lane in lanes.slots[:3]] == [0, 1, 1]


def test_a_long_text_can_be_stopped(lanes: Lanes) -> None:
    lanes.slots[0].extend(text(0), rows=0)
    lanes.should_stop = lambda: True
    with pytest.raises(Cancelled):
        lanes.slots[0].extend(TOKENS)
    assert lanes.slots[0].position == 40
    lanes.should_stop = None
    lanes.slots[0].extend(TOKENS)


def test_memory_that_cannot_forget_a_part_takes_nothing_in_vain(
    tiny_path: Callable[..., Path],
) -> None:
    with Weights(tiny_path(architecture="mamba")) as weights:
        made = Lanes(weights, ONE_THREAD, 3)
        with LlamaModel(weights, ONE_THREAD) as model:
            expected = [model.extend(text(1)).copy(), model.extend([5]).copy()]
    assert not made.can_rewind
    first = made.slots[1].extend(text(1)).copy()
    made.slots[0].extend(text(0), rows=0)
    parts = [Part(made.slots[0], [7], 1), Part(made.slots[1], [5], 1)]
    found = [first, rows_of(made.run(parts)[1])]
    for pair in zip(expected, found, strict=True):
        np.testing.assert_allclose(*pair, atol=CLOSE)
    assert not made.share(made.slots[0], made.slots[2], 10)
    assert not made.slots[0].rewind(20) and made.slots[0].position == 0
    assert made.slots[1].position == 41
    ahead = made.slots[1].peek([7, 9], 2)
    assert made.slots[1].position == 41
    with LlamaModel.open(tiny_path(architecture="mamba"), ONE_THREAD) as model:
        model.extend([*text(1), 5], 0)
        np.testing.assert_allclose(model.extend([7, 9], 2), ahead, atol=CLOSE)
    made.close()


KINDS = [Kernels(), Kernels(by_fours=True), Kernels(on_gpu=True)]


@pytest.mark.parametrize("kernels", KINDS)
@pytest.mark.parametrize("sizes", [(1, 2, 3, 4, 5), (2, 4, 5), (5,), (1, 4)])
def test_spans_are_the_cheapest_that_hold_every_lane(
    sizes: tuple[int, ...], kernels: Kernels
) -> None:
    count = 5
    everything = [(first, first + size) for size in sizes for first in range(count - size + 1)]
    for bits in range(1, 1 << count):
        wanted = tuple(lane for lane in range(count) if bits >> lane & 1)
        found = spans(wanted, count, sizes, kernels)
        held = [lane for first, stop in found for lane in range(first, stop)]
        assert set(wanted) <= set(held) <= set(range(count))
        assert held == sorted(set(held))
        price = sum(kernels.cost(stop - first) for first, stop in found)
        for number in (1, 2, 3):
            for other in itertools.combinations(everything, number):
                lanes = [lane for first, stop in other for lane in range(first, stop)]
                if len(lanes) == len(set(lanes)) and set(wanted) <= set(lanes):
                    assert sum(kernels.cost(b - a) for a, b in other) >= price - 1e-9
