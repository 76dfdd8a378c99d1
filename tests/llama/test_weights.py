"""Loading: what a model says about itself, progress, users, errors in plain words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from capt_local.errors import ModelError
from capt_local.llama.model import LlamaModel
from capt_local.llama.weights import Weights
from tests.llama.conftest import ONE_THREAD
from tests.tiny_models import tiny_gguf


def test_text_that_is_not_utf_8_never_reaches_llama_cpp(tiny_path: Callable[..., Path]) -> None:
    with Weights(tiny_path(), vocabulary_only=True) as weights:
        with pytest.raises(ValueError, match="utf-8"):
            weights.tokenize(b"caf\xe9", special=False)
        assert weights.tokenize(b"", special=False) == []
        assert weights.vocabulary.text(weights.tokenize(b"a\0b", special=False)) == b"a\0b"


def test_llama_cpp_says_itself_what_is_wrong_with_a_model(
    tiny_path: Callable[..., Path], tmp_path: Path
) -> None:
    whole = tiny_path().read_bytes()
    path = tmp_path / "odd.gguf"
    path.write_bytes(whole.replace(b"blk.1.ffn_up", b"blk.1.ffn_xx", 1))
    with pytest.raises(ModelError) as caught:
        Weights(path)
    message = str(caught.value)
    assert message.startswith("odd.gguf cannot be loaded: ")
    assert "tensor 'blk.1.ffn_up.weight' not found" in message
    assert str(tmp_path) not in message
    assert "\n" not in message


@pytest.mark.parametrize("quantized", ["Q8_0", "Q4_0", "F16"])
def test_batches_run_in_every_format_that_is_rearranged(tmp_path: Path, quantized: str) -> None:
    # With tiles (AMX) such a batch ends the process in the version that is pinned.
    path = tiny_gguf(tmp_path / "model.gguf", seed=1, number_format=quantized)
    with LlamaModel.open(path, ONE_THREAD) as model:
        rows = model.extend(list(range(60)), rows=4)
        assert rows.std() > 1
