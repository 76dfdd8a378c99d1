"""A small matrix product on each device."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from capt_local.engine import trial
from capt_local.engine.hardening import keep_memory_private, memory_is_private
from capt_local.engine.library import library


def test_every_device_of_this_machine_computes() -> None:
    devices = library().devices()
    assert devices
    assert all(library().computes(index) for index in range(len(devices)))


def test_wrong_numbers_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    product = trial._product

    def off_by_one(*arguments: object) -> object:
        found = product(*arguments)  # type: ignore[arg-type]
        assert found is not None
        found[0, 0] += 1
        return found

    monkeypatch.setattr(trial, "_product", off_by_one)
    assert not library().computes(0)
    monkeypatch.setattr(trial, "_product", lambda *_: np.full((4, 16), np.nan, np.float32))
    assert not library().computes(0)


def test_a_device_that_does_not_start_does_not_compute() -> None:
    def ggml(name: str, result: object, *types: object) -> object:
        if name == "ggml_backend_dev_init":
            return lambda *_: None
        return library()._ggml(name, result, *types)

    assert not trial.computes(ggml, 0)  # type: ignore[arg-type]


def test_a_process_that_keeps_its_memory_says_so() -> None:
    keep_memory_private()
    assert memory_is_private() is (None if sys.platform == "win32" else True)
