"""The random trio for measurements: the same from the same seed, and shaped like real models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from capt_local.llama.model import LlamaModel
from capt_local.llama.options import LoadOptions
from scripts.make_scale_trio import PRESETS, write_model
from tests.real_vocabularies import vocabulary_path

SHAPE = PRESETS["tiny"][1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Base and expert of the smallest trio."""
    folder = tmp_path_factory.mktemp("scale")
    vocabulary = vocabulary_path("llama-spm")
    write_model(folder / "base.gguf", SHAPE, vocabulary, 2)
    write_model(folder / "expert.gguf", SHAPE, vocabulary, 2, own_from=SHAPE.layers - 1)
    return folder / "base.gguf", folder / "expert.gguf"


def log_probabilities(path: Path) -> np.ndarray:
    tokens = np.random.default_rng(1).integers(300, 30_000, 16).tolist()
    with LlamaModel.open(path, LoadOptions(threads=1)) as model:
        rows = model.extend(tokens, rows=16).astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def test_the_same_seed_gives_the_same_file(pair: tuple[Path, Path], tmp_path: Path) -> None:
    vocabulary = vocabulary_path("llama-spm")
    again = tmp_path / "base.gguf"
    write_model(again, SHAPE, vocabulary, 2)
    assert again.read_bytes() == pair[0].read_bytes()


def test_a_step_has_the_entropy_of_a_real_model(pair: tuple[Path, Path]) -> None:
    base, expert = (log_probabilities(path) for path in pair)
    for logp in (base, expert):
        entropy = -(np.exp(logp) * logp).sum(axis=1)
        assert 1 < entropy.mean() < 3.5
    contrast = expert - base
    assert 0.3 < contrast.std() < 4
