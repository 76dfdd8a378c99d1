"""Estimates of memory; threads follow what other processes take, and change no result."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from capt_local.errors import MemoryShortage
from capt_local.llama import resources
from capt_local.llama.gguf_header import read_header
from capt_local.llama.model import LlamaModel
from capt_local.llama.options import LoadOptions
from capt_local.llama.resources import (
    BusyCores,
    MemoryEstimate,
    check_fits,
    estimate,
    physical_cores,
)
from tests.real_models import smollm2
from tests.tiny_models import LAYERS, WIDTH

MIB = 1 << 20


def samples(monkeypatch: pytest.MonkeyPatch, *values: tuple[float, float, float]) -> BusyCores:
    """A machine of four cores whose samples are these."""
    given = iter(values)
    monkeypatch.setattr(BusyCores, "_sample", lambda _: next(given))
    monkeypatch.setattr(resources, "_usable_cpus", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(resources.psutil, "cpu_count", lambda logical: 4)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    return BusyCores()


@pytest.mark.parametrize(
    ("busy_seconds", "own", "wanted"),
    [(0.0, 0.0, 4), (4.0, 4.0, 4), (0.3, 0.0, 4), (1.0, 0.0, 3), (4.0, 2.7, 3), (4.0, 0.4, 1)],
)
def test_as_many_threads_as_find_a_core(
    monkeypatch: pytest.MonkeyPatch, busy_seconds: float, own: float, wanted: int
) -> None:
    cores = samples(monkeypatch, (50.0, 10.0, 5.0), (51.0, 10.0 + busy_seconds, 5.0 + own))
    assert cores.threads() == wanted


def test_logits_are_the_same_bits_with_any_number_of_threads() -> None:
    found = []
    for count in (1, 2):
        with LlamaModel.open(smollm2(), LoadOptions(threads=count, context=512)) as model:
            model.extend(list(range(200, 220)))
            rows = [model.extend(list(range(1000, 1000 + n))).copy() for n in (1, 2, 3, 8)]
            found.append(np.concatenate(rows))
    assert np.array_equal(found[0], found[1])


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="control groups are Linux's")
def test_a_control_group_limits_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "_CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(resources, "_usable_cpus", lambda: list(range(8)))
    monkeypatch.setattr(resources.psutil, "cpu_count", lambda logical: 8)
    for text, wanted in (("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1)):
        (tmp_path / "cpu.max").write_text(text)
        resources._quota.cache_clear()
        assert physical_cores() == wanted
    resources._quota.cache_clear()


def test_weights_and_kv_cache_are_counted_to_the_byte(tiny_path: Callable[..., Path]) -> None:
    header = read_header(tiny_path())
    found = estimate(header, LoadOptions(context=300, kv_type="f16"))
    assert found.weights == sum(one.size for one in header.tensors)
    assert found.kv_cache == 2 * WIDTH * LAYERS * 512 * 2  # keys and values; padded to 512 cells
    assert found.layers == LAYERS + 1
    sizes = {one.name: one.size for one in header.tensors}
    assert found.movable[-1] == sizes["output.weight"] + sizes["output_norm.weight"]
    assert sum(found.movable) == found.weights - sizes["token_embd.weight"]
    assert found.total == found.weights + found.kv_cache + found.buffers
    wider = estimate(header, LoadOptions(context=300, kv_type="f32"))
    assert wider.kv_cache == 2 * found.kv_cache
    narrow = estimate(header, LoadOptions(context=300, kv_type="q4_0"))
    assert narrow.kv_cache == found.kv_cache * 18 // 64  # blocks of 32 numbers in 18 bytes


def test_models_that_do_not_fit_are_refused_with_the_figures() -> None:
    one = MemoryEstimate(weights=600 * MIB, kv_cache=300 * MIB, buffers=100 * MIB)
    check_fits({"target": one, "expert": one}, 2000 * MIB)
    with pytest.raises(MemoryShortage) as caught:
        check_fits({"target": one, "expert": one}, 1999 * MIB)
    message = str(caught.value)
    assert "2,000 MiB are needed, 1,999 MiB are free" in message
    assert "target 1,000 MiB (weights 600 MiB, KV cache 300 MiB)" in message
