"""Tiny models, written once for the tests of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capt_local.llama.model import LlamaModel
from capt_local.llama.options import LoadOptions
from tests.tiny_models import Architecture, tiny_gguf
from tests.tiny_vocabularies import Flavour

TOKENS = [(7 * n + n * n) % 300 for n in range(200)]
CLOSE = 2e-4  # of logits of about 4; other batch shapes add up in another order
# One thread: the models are so small that threads would only wait for each other. F32 all the way,
# so that other batch shapes differ by rounding alone (with the defaults it is about 2e-3).
ONE_THREAD = LoadOptions(threads=1, max_rows=8, batch=32, kv_type="f32", flash_attention="off")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_path(flavour, architecture)` is the file of a tiny model."""
    folder = tmp_path_factory.mktemp("tiny")

    def path(flavour: Flavour = "bpe", architecture: Architecture = "llama") -> Path:
        file = folder / f"{architecture}-{flavour}.gguf"
        if not file.exists():
            tiny_gguf(file, seed=1, flavour=flavour, architecture=architecture)
        return file

    return path


@pytest.fixture
def model(tiny_path: Callable[..., Path]) -> Iterator[LlamaModel]:
    """A tiny llama model with an empty context of 512 tokens."""
    with LlamaModel.open(tiny_path(), ONE_THREAD, name="target") as opened:
        yield opened
