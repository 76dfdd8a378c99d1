"""Models that are opened together; those of one file share its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from capt_local.bundles.store import find
from capt_local.errors import MemoryShortage, UsageError
from capt_local.llama import resources
from capt_local.llama.load_models import PlainLlama, estimates, open_models
from capt_local.llama.model import LlamaModel
from capt_local.llama.options import KvType, LoadOptions, Placement
from tests.llama.conftest import ONE_THREAD

TinyPath = Callable[..., Path]


@pytest.fixture
def files(tiny_path: TinyPath, tmp_path: Path) -> dict[str, Path]:
    """Two experts of one base; the second base is named through a link."""
    base, link = tiny_path("spm"), tmp_path / "link.gguf"
    link.symlink_to(base)
    return {
        "target": tiny_path("bpe"),
        "expert": tiny_path("spm", "gemma3"),
        "base": base,
        "expert-2": tiny_path("spm", "mamba"),
        "base-2": link,
    }


def test_models_of_one_file_share_its_weights(files: dict[str, Path]) -> None:
    told: list[str] = []
    different = dataclasses.replace(ONE_THREAD, placements={"base": Placement(devices=("CPU",))})
    with pytest.raises(UsageError, match="base and base-2 share the weights"):
        open_models(files, different)
    models = open_models(files, ONE_THREAD, lambda role, _: told.append(role))
    assert list(models) == list(files)
    assert [model.name for model in models.values()] == list(files)
    assert models["base"].weights is models["base-2"].weights
    assert len({id(model.weights) for model in models.values()}) == 4
    assert list(dict.fromkeys(told)) == ["target", "expert", "base", "expert-2"]
    for model in models.values():
        model.close()
    assert all(model.weights.handle is None for model in models.values())


def test_shared_weights_count_once(files: dict[str, Path]) -> None:
    needed = estimates(files, ONE_THREAD)
    assert list(needed) == list(files)
    shared = dataclasses.replace(needed["base"], weights=0, movable=(0,) * needed["base"].layers)
    assert needed["base-2"] == shared
    assert needed["base"].weights > 0 and needed["base-2"].kv_cache > 0


def test_what_does_not_fit_together_is_not_loaded(
    tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"base": tiny_path(), "base-2": tiny_path()}
    needed = sum(one.total for one in estimates(files, ONE_THREAD).values())
    monkeypatch.setattr(resources, "available_memory", lambda: needed - 1)
    with pytest.raises(MemoryShortage, match=r"base \d+ MiB .*, base-2 \d+ MiB \(weights 0 MiB"):
        open_models(files, ONE_THREAD)
    monkeypatch.setattr(resources, "available_memory", lambda: needed)
    for model in open_models(files, ONE_THREAD).values():
        model.close()


@pytest.mark.parametrize("kv_type", ["f16", "q4_0"])
def test_the_answer_of_the_binding_is_ours_and_does_not_depend_on_the_one_before(
    kv_type: KvType,
) -> None:
    path = find("demo").models["target"].path
    options = LoadOptions(threads=1, context=128, kv_type=kv_type)
    with LlamaModel.open(path, options) as model, PlainLlama(path, model, options) as plain:
        prompt = model.tokenize(b"The patient has a cough and", special=False)
        ours: list[int] = []
        row = model.extend(prompt)[0]
        for _ in range(6):
            ours.append(int(row.argmax()))
            row = model.extend(ours[-1:])[0]
        first = list(islice(plain.tokens(prompt), 6))
        list(islice(plain.tokens(prompt[:3]), 4))
        assert first == ours == list(islice(plain.tokens(prompt), 6))
