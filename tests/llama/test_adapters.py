"""LoRA adapters: on one context of several, and refused where they do not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capt_local.errors import ModelError, NumericalError, UsageError
from capt_local.llama import adapters
from capt_local.llama.batched import Lanes
from capt_local.llama.gguf_header import read_header
from capt_local.llama.load_models import estimates, open_models
from capt_local.llama.memory import adapter_size
from capt_local.llama.model import LlamaModel
from capt_local.llama.options import Adapter
from capt_local.llama.weights import Weights
from tests.llama.conftest import ONE_THREAD
from tests.tiny_models import INNER, WIDTH, adapter_gguf, tiny_adapter, tiny_gguf

TOKENS = list(range(30, 40))
DOWN = "blk.0.ffn_down.weight"
TinyPath = Callable[..., Path]


@dataclasses.dataclass(frozen=True)
class Named:
    """An adapter as a bundle names it."""

    path: Path
    scale: float = 1.0


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return tiny_adapter(tmp_path / "adapter.gguf", seed=5)


def opened(weights: Weights, *given: Adapter) -> LlamaModel:
    return LlamaModel(weights, dataclasses.replace(ONE_THREAD, adapters=given))


def logits(weights: Weights, *given: Adapter) -> np.ndarray:
    with opened(weights, *given) as model:
        return model.extend(TOKENS).copy()


def test_an_adapter_changes_the_model_by_its_scale(tiny_path: TinyPath, adapter: Path) -> None:
    with Weights(tiny_path()) as weights:
        plain = logits(weights)
        off = logits(weights, Adapter(adapter, 0.0))
        half, full = (logits(weights, Adapter(adapter, scale)) for scale in (0.5, 1.0))
        assert np.array_equal(off, plain)
        assert 0.01 < np.abs(half - plain).mean() < np.abs(full - plain).mean()
        assert np.array_equal(logits(weights), plain)  # the weights themselves are untouched


def test_it_is_what_the_changed_weights_are(tmp_path: Path, tiny_path: TinyPath) -> None:
    # A model that differs from another in one matrix alone, by a product of rank 2.
    random = np.random.default_rng(3)
    a, b = random.standard_normal((2, INNER)) / 8, random.standard_normal((WIDTH, 2)) / 8
    pair = {f"{DOWN}.lora_a": a, f"{DOWN}.lora_b": b}
    changed = tiny_gguf(tmp_path / "changed.gguf", seed=1, changes={DOWN: 3.0 * b @ a})
    path = adapter_gguf(tmp_path / "lora.gguf", pair, alpha=6.0)  # over the rank: 3
    with Weights(tiny_path()) as weights, LlamaModel.open(changed, ONE_THREAD) as wanted:
        found = logits(weights, Adapter(path))
        np.testing.assert_allclose(found, wanted.extend(TOKENS), atol=2e-4)
        assert np.abs(found - logits(weights)).max() > 0.1


def test_the_base_beside_its_expert_is_the_base_alone(tiny_path: TinyPath, adapter: Path) -> None:
    with LlamaModel.open(tiny_path(), ONE_THREAD) as alone:
        wanted = [alone.extend(TOKENS, rows=3).copy(), alone.extend([7]).copy()]
    files = {"expert": tiny_path(), "base": tiny_path()}
    models = open_models(files, ONE_THREAD, adapters={"expert": Named(adapter)})
    expert, base = models["expert"], models["base"]
    assert expert.weights is base.weights
    changed = expert.extend(TOKENS, rows=3).copy()
    np.testing.assert_array_equal(base.extend(TOKENS, rows=3), wanted[0])
    assert np.abs(changed - wanted[0]).max() > 0.1
    expert.extend([9])
    np.testing.assert_array_equal(base.extend([7]), wanted[1])
    expert.close()
    assert base.rewind(len(TOKENS))
    np.testing.assert_array_equal(base.extend([7]), wanted[1])
    base.close()
    assert base.weights.handle is None


def test_an_expert_with_an_adapter_rewinds_and_peeks(tiny_path: TinyPath, adapter: Path) -> None:
    with Weights(tiny_path()) as weights, opened(weights, Adapter(adapter)) as expert:
        whole = expert.extend([*TOKENS, 50, 51]).copy()
        assert expert.rewind(len(TOKENS))
        np.testing.assert_allclose(expert.peek([50, 51]), whole, atol=1e-4)
        again = expert.extend([50, 51])
        np.testing.assert_allclose(again, whole, atol=1e-4)


def test_lanes_of_an_expert_have_its_adapter(tiny_path: TinyPath, adapter: Path) -> None:
    options = dataclasses.replace(ONE_THREAD, adapters=(Adapter(adapter),))
    with Weights(tiny_path()) as weights:
        lanes = Lanes(weights, options, 2)
        (rows,) = lanes.run([(lanes.slots[1], TOKENS, 1)])
        assert isinstance(rows, np.ndarray)
        np.testing.assert_allclose(rows, logits(weights, Adapter(adapter)), atol=1e-4)
        lanes.close()


def test_one_file_is_loaded_once(
    tiny_path: TinyPath, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Path] = []
    load = adapters.load_adapter

    def counted(library: Any, handle: Any, model: str, path: Path, place: Path) -> int:
        loads.append(path)
        return load(library, handle, model, path, place)

    monkeypatch.setattr("capt_local.llama.weights.load_adapter", counted)
    link = tmp_path / "link.gguf"
    link.symlink_to(adapter)
    with Weights(tiny_path()) as weights:
        first, second = opened(weights, Adapter(adapter)), opened(weights, Adapter(link, 0.5))
        assert loads == [adapter]
        first.close()
        changed = second.extend(TOKENS).copy()
        second.close()
        np.testing.assert_array_equal(logits(weights, Adapter(adapter, 0.5)), changed)


def test_it_is_counted_once_beside_the_weights(tiny_path: TinyPath, adapter: Path) -> None:
    files = dict.fromkeys(("target", "expert", "base", "expert-2"), tiny_path())
    named = {"expert": Named(adapter), "expert-2": Named(adapter, 0.5)}
    needed = estimates(files, ONE_THREAD, named)
    plain = estimates(files, ONE_THREAD)
    size = sum(one.size for one in read_header(adapter).tensors)
    assert adapter_size(adapter) == size > 0
    assert [one.adapters for one in needed.values()] == [0, size, 0, 0]
    assert [one.total - plain[role].total for role, one in needed.items()] == [0, size, 0, 0]


def test_adapters_of_all_models_at_once_have_no_meaning(tiny_path: TinyPath, adapter: Path) -> None:
    options = dataclasses.replace(ONE_THREAD, adapters=(Adapter(adapter),))
    with pytest.raises(UsageError, match="belongs to one model"):
        open_models({"target": tiny_path()}, options)


A, B = np.ones((2, INNER)), np.ones((WIDTH, 2))
PAIR = {f"{DOWN}.lora_a": A, f"{DOWN}.lora_b": B}
EMBEDDING, TIED = "token_embd.weight", "tied.gguf"
BAD: dict[str, tuple[Mapping[str, np.ndarray], dict[str, Any], str]] = {
    "architecture": (PAIR, {"architecture": "qwen2"}, "for the architecture qwen2, the model has"),
    "no lora": (PAIR, {"kind": "control"}, "it is not a LoRA adapter"),
    "alpha a text": (PAIR, {"alpha": "16", "alpha_kind": "STRING"}, "its alpha is not a number"),
    "alpha too long": (PAIR, {"alpha_kind": "FLOAT64"}, "its alpha is not a number of 32 bits"),
    "begins later": (PAIR, {"begins": [1, 2]}, "begins in the middle of a text"),
    "empty": ({}, {}, "it holds no matrices"),
    "norms alone": ({"output_norm.weight": np.ones(WIDTH)}, {}, "it holds no matrices"),
    "half a pair": ({f"{DOWN}.lora_a": A}, {}, "one matrix of a pair is missing"),
    "something else": ({**PAIR, DOWN: np.ones((WIDTH, INNER))}, {}, "something else than pairs"),
    "no such matrix": (
        {f"blk.9.ffn_down.weight.{side}": PAIR[f"{DOWN}.{side}"] for side in ("lora_a", "lora_b")},
        {},
        "a matrix that the model does not have",
    ),
    "inner width": ({**PAIR, f"{DOWN}.lora_a": np.ones((2, INNER + 1))}, {}, "other shapes"),
    "outer width": ({**PAIR, f"{DOWN}.lora_b": np.ones((WIDTH + 1, 2))}, {}, "other shapes"),
    "ranks differ": ({**PAIR, f"{DOWN}.lora_b": np.ones((WIDTH, 3))}, {}, "other shapes"),
    "transposed": ({f"{DOWN}.lora_a": A.T, f"{DOWN}.lora_b": B.T}, {}, "other shapes"),
    "a stack": (
        {name: np.stack([values] * 2) for name, values in PAIR.items()},
        {},
        "other shapes",
    ),
    "a norm as a pair": (
        {"output_norm.weight.lora_a": np.ones((1, WIDTH)), "output_norm.weight.lora_b": B[:1, :1]},
        {},
        "other shapes",
    ),
    "whole numbers": (PAIR, {"dtype": np.int32}, "a number format that adapters do not have"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_clear_error(
    case: str, tiny_path: TinyPath, tmp_path: Path
) -> None:
    tensors, about, said = BAD[case]
    path = adapter_gguf(tmp_path / "lora.gguf", tensors, **about)
    files = {"expert": tiny_path(), "base": tiny_path()}
    with pytest.raises(ModelError, match=said) as caught:
        open_models(files, ONE_THREAD, adapters={"expert": Named(path)})
    assert str(caught.value).startswith("lora.gguf cannot be used as an adapter of llama-bpe.gguf:")
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)
    with Weights(tiny_path()) as weights, pytest.raises(ModelError, match=said):
        opened(weights, Adapter(path))


def test_an_empty_dimension_changes_nothing(tiny_path: TinyPath, tmp_path: Path) -> None:
    plain = adapter_gguf(tmp_path / "lora.gguf", PAIR)
    more = {name: values[None] for name, values in PAIR.items()}
    path = adapter_gguf(tmp_path / "more.gguf", more)
    with Weights(tiny_path()) as weights:
        np.testing.assert_array_equal(
            logits(weights, Adapter(path)), logits(weights, Adapter(plain))
        )


def test_files_that_are_no_adapter(tiny_path: TinyPath, adapter: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(adapter.read_bytes()[:-100])
    folder = tmp_path / "folder.gguf"
    folder.mkdir()
    with Weights(tiny_path()) as weights:
        for path, said in (
            (tmp_path / "none.gguf", "there is no such model file"),
            (tiny_path(), "it is not a LoRA adapter"),
            (cut, "is cut off"),
            (folder, "is a folder"),
        ):
            with pytest.raises(ModelError, match=said) as caught:
                opened(weights, Adapter(path))
            assert path.name in str(caught.value)
            assert str(tmp_path) not in str(caught.value)
        logits(weights)  # nothing is left of them


def test_an_adapter_that_is_no_numbers_is_told_at_the_first_step(
    tiny_path: TinyPath, tmp_path: Path
) -> None:
    broken = {name: np.full_like(values, np.nan) for name, values in PAIR.items()}
    path = adapter_gguf(tmp_path / "lora.gguf", broken)
    files = {"expert": tiny_path(), "base": tiny_path()}
    models = open_models(files, ONE_THREAD, adapters={"expert": Named(path)})
    with pytest.raises(NumericalError, match=r"expert .* are not numbers"):
        models["expert"].extend(TOKENS)
    assert np.isfinite(models["base"].extend(TOKENS)).all()
    for model in models.values():
        model.close()


def embedding_pair(tokens: int, rank: int = 2) -> dict[str, np.ndarray]:
    a, b = np.ones((tokens, rank)) / 8, np.ones((WIDTH, rank)) / 8
    return {f"{EMBEDDING}.lora_a": a, f"{EMBEDDING}.lora_b": b}


def test_embeddings_that_serve_as_output_cannot_be_changed(
    tiny_path: TinyPath, tmp_path: Path
) -> None:
    tied = tiny_gguf(tmp_path / "tied.gguf", seed=1, tied=True)
    with Weights(tiny_path()) as weights, Weights(tied) as both:
        pair = embedding_pair(len(weights.vocabulary))
        path = adapter_gguf(tmp_path / "lora.gguf", pair)
        assert np.abs(logits(weights, Adapter(path)) - logits(weights)).max() > 0.1
        with pytest.raises(ModelError, match="embeddings, which in this model serve as output too"):
            opened(both, Adapter(path))
        pair[f"{EMBEDDING}.lora_b"] = np.ones((WIDTH, 3))  # llama.cpp ends the process over it
        with pytest.raises(ModelError, match="other shapes"):
            opened(weights, Adapter(adapter_gguf(tmp_path / "odd.gguf", pair)))


def test_norms_in_an_adapter_are_told(tiny_path: TinyPath, tmp_path: Path) -> None:
    norms = {"output_norm.weight": np.ones(WIDTH), "blk.0.attn_norm.weight": np.ones(WIDTH)}
    path = adapter_gguf(tmp_path / "lora.gguf", PAIR | norms)
    with Weights(tiny_path()) as weights, opened(weights, Adapter(path)) as model:
        assert any(note.startswith("lora.gguf: 2 norms in it are left out") for note in model.notes)
    with Weights(tiny_path()) as weights, opened(weights) as model:
        assert not any("norms" in note for note in model.notes)
