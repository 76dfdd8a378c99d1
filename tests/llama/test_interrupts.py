"""Ctrl-C while llama.cpp computes or loads: it arrives, and nothing is lost or half done."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from capt_local.engine.interrupts import HeldInterrupts
from capt_local.engine.llama import LlamaModel
from capt_local.engine.weights import Weights
from capt_local.errors import Cancelled


@pytest.fixture(autouse=True)
def default_handler() -> object:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(*_: object) -> bool:
    signal.raise_signal(signal.SIGINT)
    return False


def test_an_interrupt_in_a_long_text_arrives_and_leaves_the_position(model: LlamaModel) -> None:
    model.extend([1, 2, 3])
    model.should_stop = interrupt
    with pytest.raises(KeyboardInterrupt):
        model.extend(list(range(100)))
    assert model.position == 3
    model.should_stop = None
    assert model.extend(list(range(100))).shape[0] == 1


def test_a_handler_that_only_takes_note_makes_it_a_cancellation(model: LlamaModel) -> None:
    noted: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: noted.append(number))
    model.should_stop = interrupt
    with pytest.raises(Cancelled):
        model.extend(list(range(100)))
    assert model.position == 0
    assert noted == [signal.SIGINT]


def test_an_interrupt_while_loading_arrives(tiny_path: Callable[..., Path]) -> None:
    with pytest.raises(KeyboardInterrupt):
        Weights(tiny_path(), progress=interrupt)
    signal.signal(signal.SIGINT, lambda *_: None)
    with pytest.raises(Cancelled, match=r"llama-bpe.gguf was stopped"):
        Weights(tiny_path(), progress=interrupt)


def test_handlers_are_put_back() -> None:
    with HeldInterrupts() as held:
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert not held.asked
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
