"""Extend, step, peek and rewind on a tiny model that llama.cpp really computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from capt_local.errors import Cancelled, ContextOverflow, NumericalError
from capt_local.llama.model import LlamaModel
from tests.llama.conftest import CLOSE, ONE_THREAD, TOKENS
from tests.tiny_models import WINDOW, tiny_gguf


def rows_one_by_one(model: LlamaModel, tokens: list[int]) -> np.ndarray:
    return np.concatenate([model.extend([token]).copy() for token in tokens])


@pytest.mark.parametrize("size", [20, 65])
def test_rows_are_the_logits_after_the_last_tokens(model: LlamaModel, size: int) -> None:
    # 65 tokens in batches of 32: without care one row would be left for the last batch.
    single = rows_one_by_one(model, TOKENS[:size])
    assert model.rewind(0)
    rows = model.extend(TOKENS[:size], rows=8)
    assert rows.shape == (8, len(model.vocabulary)) and model.position == size
    np.testing.assert_allclose(rows, single[-8:], atol=CLOSE)
    assert single.std() > 1  # the model says something


def test_extending_after_a_rewind_is_a_fresh_prefill_bit_for_bit(model: LlamaModel) -> None:
    model.extend(TOKENS[:16], rows=0)
    fresh = model.extend(TOKENS[16:24], rows=2).copy()
    model.rewind(16)
    model.extend(TOKENS[40:70], rows=1)
    assert model.rewind(16)
    assert model.position == 16
    assert np.array_equal(model.extend(TOKENS[16:24], rows=2), fresh)


def test_text_that_does_not_fit_leaves_the_position(model: LlamaModel) -> None:
    model.extend(TOKENS[:10])
    with pytest.raises(ContextOverflow) as caught:
        model.extend([1] * model.context_limit)
    assert caught.value.counts == {"target": model.context_limit + 10}
    assert model.position == 10
    with pytest.raises(ContextOverflow):
        model.peek([1] * model.context_limit)
    assert model.position == 10
    model.extend([1] * (model.context_limit - 10), rows=0)
    assert model.position == model.context_limit
    with pytest.raises(ContextOverflow):
        model.extend([1])


def test_a_context_never_goes_beyond_what_the_model_was_trained_for(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "short.gguf", seed=1, context=100)
    with LlamaModel.open(path, ONE_THREAD) as short:  # llama.cpp pads to 256
        assert short.context_limit == 100
        assert short.notes == ()
    longer = dataclasses.replace(ONE_THREAD, context=200)
    with LlamaModel.open(path, longer) as stretched:
        assert stretched.context_limit >= 200
        assert "longer than the 100" in stretched.notes[0]


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_cancelling_a_long_text_leaves_the_position(model: LlamaModel, stop_at: int) -> None:
    model.extend(TOKENS[:16], rows=0)
    fresh = model.extend(TOKENS[16:24]).copy()
    model.rewind(16)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked >= stop_at * 40  # it is asked many times for each batch

    model.should_stop = stop
    with pytest.raises(Cancelled):
        model.extend(TOKENS[16:], rows=4)
    model.should_stop = None
    assert asked == stop_at * 40
    assert model.position == 16
    assert np.array_equal(model.extend(TOKENS[16:24]), fresh)


def test_nan_weights_are_an_error_and_leave_the_position(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "broken.gguf", seed=1, nan=True)
    with LlamaModel.open(path, ONE_THREAD, name="expert") as model:
        with pytest.raises(NumericalError, match=r"expert \(broken.gguf\)"):
            model.extend(TOKENS[:4])
        assert model.position == 0
        with pytest.raises(NumericalError):
            model.extend([1])
        model.extend([1], rows=0)
        with pytest.raises(NumericalError):
            model.peek([1])


def test_a_recurrent_model_says_that_it_cannot_rewind(tiny_path: Callable[..., Path]) -> None:
    with LlamaModel.open(tiny_path(architecture="mamba"), ONE_THREAD) as model:
        fresh = model.extend(TOKENS[:20], rows=2).copy()
        peeked = model.peek([2, 3])  # on a copy of the state
        assert model.position == 20
        np.testing.assert_allclose(model.extend([2, 3])[0], peeked[0], atol=CLOSE)
        assert model.rewind(22)  # nothing to forget
        assert not model.rewind(10)
        assert model.position == 0
        assert np.array_equal(model.extend(TOKENS[:20], rows=2), fresh)


def test_a_sliding_window_can_be_rewound(tiny_path: Callable[..., Path]) -> None:
    text = (TOKENS * 2)[:300]  # longer than the cells of a window
    with LlamaModel.open(tiny_path(architecture="gemma3"), ONE_THREAD) as model:
        expected = model.extend(text, rows=2).copy()
        for back in (300 - 2 * WINDOW, 10):
            assert model.rewind(back)
            np.testing.assert_allclose(model.extend(text[back:], rows=2), expected, atol=CLOSE)


def test_steps_have_the_bits_of_single_tokens(model: LlamaModel) -> None:
    """However many come at once, and whatever stands behind them in the memory."""
    model._prefers_batches = True
    for floor in {1, model._find_batch_floor()}:
        model.batch_floor = floor
        model.rewind(0)
        model.extend(TOKENS[:10], 0)
        single = np.array([model.step([token])[0].copy() for token in TOKENS[10:18]])
        for size in (2, 3, 5, 8):
            model.rewind(10)
            found = [
                row.copy()
                for at in range(10, 18, size)
                for row in model.step(TOKENS[at : min(at + size, 18)], min(size, 18 - at))
            ]
            assert np.array_equal(np.array(found), single)
            assert model.position == 18


def test_an_interrupt_while_the_memory_is_cut_leaves_a_model_that_goes_on(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = model.extend(TOKENS[:9]).copy()
    cut = model._context.cut

    def interrupted(length: int, number: int) -> bool:
        cut(length, number)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(model._context, "cut", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.rewind(4)
    assert np.array_equal(model.extend(TOKENS[model.position : 9]), wanted)
