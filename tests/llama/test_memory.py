"""Estimates of memory, and refusing what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from capt_local.errors import MemoryShortage
from capt_local.llama.gguf_header import read_header
from capt_local.llama.options import LoadOptions
from capt_local.llama.resources import MemoryEstimate, check_fits, estimate
from tests.tiny_models import LAYERS, WIDTH

MIB = 1 << 20


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
