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
    BatchedContext,
    Part,
    SequenceSlot,
    spans,
)
from capt_local.llama.devices import Kernels
from capt_local.llama.model import LlamaModel
from capt_local.llama.weights import Weights
from tests.llama.conftest import CLOSE, ONE_THREAD, TOKENS

COUNT = 6


@pytest.fixture
def batched(tiny_path: Callable[..., Path]) -> Iterator[BatchedContext]:
    with Weights(tiny_path()) as weights:
        made = BatchedContext(weights, ONE_THREAD, COUNT, name="target")
    yield made
    made.close()


def text(number: int, size: int = 40) -> list[int]:
    return [(token + 11 * number) % 300 for token in TOKENS[:size]]


def rows_of(result: object) -> np.ndarray:
    assert isinstance(result, np.ndarray), result
    return result.copy()


def alone(slot: SequenceSlot, tokens: list[int], steps: int) -> list[np.ndarray]:
    """A prompt and single tokens behind it."""
    found = [slot.extend(tokens).copy()]
    for step in range(steps):
        found.append(slot.step([TOKENS[step]]).copy())
    slot.rewind(0)
    return found


def test_a_text_gives_the_same_bits_whatever_runs_beside_it(batched: BatchedContext) -> None:
    assert len(batched.sizes) > 2
    expected = alone(batched.slots[2], text(2), 12)
    again = alone(batched.slots[5], text(2), 12)
    assert all(np.array_equal(*pair) for pair in zip(expected, again, strict=True))
    rng = np.random.default_rng(1)
    # Other lanes with texts of other lengths, one longer than the cells that are looked at first.
    busy = {0: 7, 1: 290, 3: 31, 4: 60}
    for number, size in busy.items():
        batched.slots[number].extend((text(number, 150) + text(number, 150))[:size], rows=0)
    found = [batched.slots[2].extend(text(2)).copy()]
    for step in range(12):
        others = rng.permutation(list(busy))[: rng.integers(0, 5)]
        parts = [Part(batched.slots[2], [TOKENS[step]], 1)]
        parts += [
            Part(batched.slots[other], TOKENS[: rng.integers(1, MOST_TOGETHER + 1)], 1)
            for other in others
        ]
        places = rng.permutation(len(parts))
        results = batched.run([parts[place] for place in places])
        found.append(rows_of(results[int(np.flatnonzero(places == 0)[0])]))
    assert all(np.array_equal(*pair) for pair in zip(expected, found, strict=True))


def test_a_lane_goes_back_without_the_others(batched: BatchedContext) -> None:
    one, two = batched.slots[:2]
    one.extend(text(1), rows=0)
    two.extend(text(2), rows=0)
    fresh = one.extend(TOKENS[:8], rows=2).copy()
    assert one.rewind(40)
    one.extend(TOKENS[50:70], rows=0)
    assert one.rewind(40) and two.position == 40
    assert np.array_equal(one.extend(TOKENS[:8], rows=2), fresh)
    with pytest.raises(ValueError, match="cannot rewind"):
        two.rewind(41)


def test_what_one_lane_computed_is_there_for_another(batched: BatchedContext) -> None:
    one, two = batched.slots[1], batched.slots[4]
    one.extend(text(0, 30), rows=0)
    expected = one.extend([5]).copy()
    one.extend(TOKENS[:20], rows=0)
    two.extend(TOKENS[:50], rows=0)
    assert batched.share(one, two, 30)
    assert two.position == 30
    assert np.array_equal(two.extend([5]), expected)
    assert one.position == 51
    assert not batched.share(one, one, 5)
    assert not batched.share(one, two, 52)


def test_what_still_runs_moves_to_the_first_places(batched: BatchedContext) -> None:
    running = [batched.slots[number] for number in (1, 3, 5)]

    def steps(packed: bool) -> list[np.ndarray]:
        for number, slot in enumerate(running):
            slot.rewind(0)
            slot.extend(text(number, 30 + 7 * number), rows=0)
        if packed:
            batched.slots[0].extend(text(7), rows=0)
            batched.pack(running)
        calls = ([Part(slot, [TOKENS[at]], 1) for slot in running] for at in range(5))
        return [rows_of(result) for call in calls for result in batched.run(call)]

    expected, found = steps(packed=False), steps(packed=True)
    assert all(np.array_equal(*pair) for pair in zip(expected, found, strict=True))
    assert sorted(slot.number for slot in running) == [0, 1, 2]
    assert [slot.number for slot in batched.slots] == list(range(COUNT))
    assert [slot.position for slot in batched.slots[3:]] == [0] * 3
    batched.pack(running[:1])  # one alone costs the same wherever it is
    assert sorted(slot.number for slot in running) == [0, 1, 2]


def test_a_part_that_does_not_fit_leaves_the_others_alone(batched: BatchedContext) -> None:
    full, other = batched.slots[0], batched.slots[1]
    full.extend((TOKENS * 3)[: batched.limit], rows=0)
    results = batched.run([Part(full, [1], 1), Part(other, [1], 1)])
    assert isinstance(results[0], ContextOverflow)
    assert results[0].counts == {"target": batched.limit + 1}
    assert rows_of(results[1]).shape[0] == 1
    assert (full.position, other.position) == (batched.limit, 1)
    # A full lane still keeps its neighbours company.
    other.extend([2])
    assert full.position == batched.limit


def test_the_part_that_fails_is_found(
    batched: BatchedContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = batched._context.decode

    def failing() -> None:
        batch = batched._batch
        if 299 in batch._tokens[: batch.raw.n_tokens]:
            raise ModelError("the backend failed")
        decode()

    expected = alone(batched.slots[1], text(1), 1)
    batched.slots[1].extend(text(1), rows=0)
    batched.slots[0].extend(text(0), rows=0)
    monkeypatch.setattr(batched._context, "decode", failing)
    parts = [Part(batched.slots[0], [5, 299], 1), Part(batched.slots[1], [TOKENS[0]], 1)]
    results = batched.run(parts)
    assert isinstance(results[0], ModelError)
    assert np.array_equal(rows_of(results[1]), expected[1])
    assert [part.slot.position for part in parts] == [40, 41]


def test_numbers_that_are_none_end_one_text(
    batched: BatchedContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = batched._context.rows

    def spoilt(count: int) -> np.ndarray:
        found = rows(count).copy()
        found[0, 7] = np.nan
        return found

    monkeypatch.setattr(batched._context, "rows", spoilt)
    results = batched.run([Part(slot, [1], 1) for slot in batched.slots[:3]])
    assert isinstance(results[0], NumericalError)
    assert not any(isinstance(result, CaptError) for result in results[1:])
    assert [slot.position for slot in batched.slots[:3]] == [0, 1, 1]


def test_a_long_text_can_be_stopped(batched: BatchedContext) -> None:
    batched.slots[0].extend(text(0), rows=0)
    batched.should_stop = lambda: True
    with pytest.raises(Cancelled):
        batched.slots[0].extend(TOKENS)
    assert batched.slots[0].position == 40
    batched.should_stop = None
    batched.slots[0].extend(TOKENS)


def test_memory_that_cannot_forget_a_part_takes_nothing_in_vain(
    tiny_path: Callable[..., Path],
) -> None:
    with Weights(tiny_path(architecture="mamba")) as weights:
        made = BatchedContext(weights, ONE_THREAD, 3)
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
        wanted = tuple(slot for slot in range(count) if bits >> slot & 1)
        found = spans(wanted, count, sizes, kernels)
        held = [slot for first, stop in found for slot in range(first, stop)]
        assert set(wanted) <= set(held) <= set(range(count))
        assert held == sorted(set(held))
        batch_cost = sum(kernels.cost(stop - first) for first, stop in found)
        for number in (1, 2, 3):
            for other in itertools.combinations(everything, number):
                batched = [slot for first, stop in other for slot in range(first, stop)]
                if len(batched) == len(set(batched)) and set(wanted) <= set(batched):
                    assert sum(kernels.cost(b - a) for a, b in other) >= batch_cost - 1e-9
