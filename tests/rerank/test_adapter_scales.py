"""Adapters with scales that change while the models are open: a tiny model and two adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from capt_local.errors import UsageError
from capt_local.llama.batched import BatchedContext
from capt_local.llama.model import LlamaModel
from capt_local.llama.options import Adapter, LoadOptions
from capt_local.llama.weights import Weights
from tests.tiny_models import tiny_adapter, tiny_gguf

TOKENS = [5, 9, 30, 7, 12]
LOAD = LoadOptions(threads=1, context=256)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("scales")
    return (
        tiny_gguf(folder / "model.gguf", seed=1),
        tiny_adapter(folder / "one.gguf", seed=2),
        tiny_adapter(folder / "two.gguf", seed=3),
    )


def row(files: tuple[Path, Path, Path], *scales: float) -> np.ndarray:
    """Logits with scales that were given at loading."""
    adapters = tuple(Adapter(path, scale) for path, scale in zip(files[1:], scales, strict=True))
    with LlamaModel.open(files[0], replace(LOAD, adapters=adapters)) as model:
        return model.extend(TOKENS).copy()


@pytest.fixture(scope="module")
def both(files: tuple[Path, Path, Path]) -> LoadOptions:
    return replace(LOAD, adapters=(Adapter(files[1]), Adapter(files[2])))


def test_scales_that_are_changed_are_as_those_of_loading(
    files: tuple[Path, Path, Path], both: LoadOptions
) -> None:
    with LlamaModel.open(files[0], both) as model:
        for scales in ((1.0, 1.0), (0.5, 1.0), (0.0, 2.0), (0.0, 0.0), (1.0, 1.0)):
            model.set_adapter_scales(scales)
            assert model.adapter_scales == scales
            np.testing.assert_array_equal(model.extend(TOKENS), row(files, *scales)[:])
            assert model.position == len(TOKENS)
            model.set_adapter_scales(scales)  # the same: nothing is dropped
            assert model.position == len(TOKENS)
            model.rewind(0)
        model.set_adapter_scales((0.5, 0.5))
        model.set_adapter_scales(None)
        assert model.adapter_scales == (1.0, 1.0)
        for wrong in ((), (1.0,), (1.0, 1.0, 1.0)):
            with pytest.raises(UsageError, match="2 adapters"):
                model.set_adapter_scales(wrong)


def test_lanes_with_different_scales_do_not_mix(
    files: tuple[Path, Path, Path], both: LoadOptions
) -> None:
    scales = [(1.0, 1.0), (0.0, 1.0), (1.0, 1.0), (2.0, 0.0)]
    with Weights(files[0], both) as weights:
        batched = BatchedContext(weights, both, len(scales))
        try:
            for slot, own in zip(batched.slots, scales, strict=True):
                slot.set_adapter_scales(own)
            for token in TOKENS:
                found = batched.run([(slot, [token], 1) for slot in batched.slots])
            for own, rows in zip(scales, found, strict=True):
                assert isinstance(rows, np.ndarray)
                np.testing.assert_allclose(rows, row(files, *own), atol=0.05)
            np.testing.assert_array_equal(found[0], found[2])
            assert batched.share(batched.slots[0], batched.slots[2], 3)
            assert not batched.share(batched.slots[0], batched.slots[1], 3)
        finally:
            batched.close()
