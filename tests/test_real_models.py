"""The published models are found, and their tokenizers open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import real_models


@pytest.mark.parametrize(
    ("path", "tokens"), [(real_models.smollm2, 49_152), (real_models.gemma, 262_144)]
)
def test_published_tokenizers_open(path: Callable[[], Path], tokens: int) -> None:
    assert len(real_models.open_tokenizer(path()).vocabulary) == tokens


@pytest.mark.parametrize("role", ["expert", "base"])
def test_demo_proxies_open(role: str) -> None:
    assert len(real_models.open_tokenizer(real_models.demo_proxy(role)).vocabulary) > 1000
