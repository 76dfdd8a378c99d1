"""The real vocabularies, for tests: fetched once, each opened once in a test run."""

from __future__ import annotations

import os
import struct
from functools import cache
from pathlib import Path

import pytest

from capt_local.llama.weights import Weights
from scripts.real_vocabularies import VocabulariesUnavailable, fetch
from tests.children.socket_guard import LOG

# Every vocabulary of the distribution that a decoder can have. The other two (bert-bge and
# nomic-bert-moe) rewrite the text and are refused.
NAMES = (
    "aquila",
    "baichuan",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "gpt-neox",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
)
REFUSED = ("bert-bge", "nomic-bert-moe")


@cache
def _folder() -> Path | VocabulariesUnavailable:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(LOG, raising=False)  # pip may reach its index
        try:
            return fetch()
        except VocabulariesUnavailable as error:
            return error


def vocabulary_path(name: str) -> Path:
    """The file of a vocabulary. Skips the test without a network, but never in a CI run."""
    folder = _folder()
    if isinstance(folder, VocabulariesUnavailable):
        if folder.offline and os.environ.get("CI") != "true":
            pytest.skip(f"the real vocabularies are not in the cache and pip is offline: {folder}")
        pytest.fail(str(folder))
    return folder / f"ggml-vocab-{name}.gguf"


def templates_folder() -> Path:
    """The folder with the chat templates; skips as `vocabulary_path` does."""
    return vocabulary_path(NAMES[0]).parent


@cache
def open_vocabulary(name: str) -> Weights:
    """The weights of a vocabulary: no tensors, but tokens and the tokenizer."""
    return Weights(vocabulary_path(name), vocabulary_only=True)


def with_pre_tokenizer(name: str, folder: Path, vocabulary: str = "gpt-2") -> Path:
    """A byte-level vocabulary whose file names another pre-tokenizer."""
    key, data = b"tokenizer.ggml.pre", vocabulary_path(vocabulary).read_bytes()
    before, behind = (
        key + struct.pack("<IQ", 8, len(one)) + one for one in (b"gpt-2", name.encode())
    )
    assert data.count(before) == 1
    path = folder / f"{name}.gguf"
    path.write_bytes(data.replace(before, behind))
    return path
