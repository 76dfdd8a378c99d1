"""Files with fewer bits, by llama.cpp's own routine, with and without an importance matrix."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from scripts.train_demo_trio.quantize import TYPES, NotQuantized, quantize, quantize_trio
from tests.tiny_models import WIDTH, tiny_gguf

MATRIX = "blk.0.ffn_up.weight"


def matrix(path: Path) -> np.ndarray:
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == MATRIX)
    return np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("f16")
    for seed, role in enumerate(("target", "expert", "base"), 1):
        tiny_gguf(folder / f"{role}.gguf", seed=seed, number_format="F16")
    return folder


def test_fewer_bits_are_further_from_the_weights(source: Path, tmp_path: Path) -> None:
    exact = matrix(source / "target.gguf")
    errors = []
    for kind in ("q8_0", "q5_0"):
        quantize(source / "target.gguf", tmp_path / f"{kind}.gguf", kind)
        assert (tmp_path / f"{kind}.gguf").stat().st_size < (source / "target.gguf").stat().st_size
        errors.append(float(np.square(matrix(tmp_path / f"{kind}.gguf") - exact).mean()))
    assert 0 < errors[0] < errors[1]


def test_columns_that_matter_are_kept_better(source: Path, tmp_path: Path) -> None:
    exact = matrix(source / "target.gguf")
    heavy = np.ones(WIDTH, np.float32)
    heavy[:4] = 1e4
    quantize(source / "target.gguf", tmp_path / "plain.gguf", "q5_0")
    quantize(source / "target.gguf", tmp_path / "heavy.gguf", "q5_0", {MATRIX: heavy})
    plain, weighed = (
        float(np.square(matrix(tmp_path / f"{name}.gguf") - exact)[:, :4].mean())
        for name in ("plain", "heavy")
    )
    assert weighed < plain


def test_a_trio_of_each_type(source: Path, tmp_path: Path) -> None:
    for kind in (*TYPES, "f16"):
        lines = quantize_trio(source, tmp_path / kind, kind, None)
        assert len(lines) == 4 and lines[-1].startswith("together")
        assert len(list((tmp_path / kind).glob("*.gguf"))) == 3


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"nothing")
    with pytest.raises(NotQuantized):
        quantize(tmp_path / "no.gguf", tmp_path / "out.gguf", "q8_0")
