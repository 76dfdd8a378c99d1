"""From the difference of two models to an adapter: the whole of it is the expert again."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from capt_local.llama.model import LlamaModel
from capt_local.llama.options import Adapter
from scripts import make_lora_expert
from scripts.make_lora_expert import (
    Weights,
    make_adapter,
    product,
    write_adapter,
    write_untied,
)
from tests.llama.conftest import ONE_THREAD
from tests.tiny_models import INNER, LAYERS, WIDTH, tiny_gguf

TOKENS = list(range(30, 50))
MATRICES = 7 * LAYERS  # attention and feed-forward
PRECISE = 0.02  # of the logits, whose spread is 4: adapters are written as F16


@pytest.fixture(params=[True, False], ids=["tied", "own output"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A base, and an expert of it with other numbers everywhere, norms among them."""
    random = np.random.default_rng(3)
    norms = ["output_norm.weight"]
    norms += [
        f"blk.{layer}.{name}_norm.weight" for layer in range(LAYERS) for name in ("attn", "ffn")
    ]
    changes = {name: random.uniform(-0.3, 0.3, WIDTH) for name in norms}
    base = tiny_gguf(tmp_path / "base.gguf", seed=1, tied=request.param)
    expert = tiny_gguf(tmp_path / "expert.gguf", seed=2, tied=request.param, changes=changes)
    return base, expert


def logits(path: Path, adapter: Path | None = None) -> np.ndarray:
    given = () if adapter is None else (Adapter(adapter),)
    options = dataclasses.replace(ONE_THREAD, adapters=given)
    with LlamaModel.open(path, options) as model:
        return model.extend(TOKENS, rows=4).copy()


def made(base: Path, expert: Path, rank: int | None, *, untied: bool) -> tuple[Path, Path]:
    """The file of the base to use, and that of the adapter."""
    adapter, copy = base.with_name("lora.gguf"), base.with_name("copy.gguf")
    weights = Weights(base)
    pairs, _ = make_adapter(weights, Weights(expert), rank, untied=untied)
    write_adapter(adapter, weights, pairs)
    if untied:
        write_untied(copy, weights)
    return copy if untied else base, adapter


def test_the_full_rank_is_the_expert(pair: tuple[Path, Path]) -> None:
    base, expert = pair
    used, adapter = made(base, expert, None, untied=Weights(base).tied)
    found, wanted = logits(used, adapter), logits(expert)
    assert np.abs(found - wanted).max() < PRECISE * wanted.std()
    assert np.abs(logits(base) - wanted).max() > wanted.std()
    # A copy with an output of its own is the base still.
    np.testing.assert_allclose(logits(used), logits(base), atol=1e-4)


def test_each_pair_is_the_best_of_its_rank(pair: tuple[Path, Path]) -> None:
    base, expert = map(Weights, pair)
    name = "blk.1.ffn_down.weight"  # with no norm before it
    difference = expert[name] - base[name]
    left, values, right = np.linalg.svd(difference.astype(np.float64), full_matrices=False)
    best = (left[:, :5] * values[:5]) @ right[:5]
    pairs, _ = make_adapter(base, expert, 5, untied=False)
    a, b = pairs[name]
    assert (a.shape, b.shape) == ((5, INNER), (WIDTH, 5))
    np.testing.assert_allclose(product(name, pairs[name]), best, atol=0.02)
    lost, least = np.linalg.norm(difference - b @ a), np.sqrt(np.square(values[5:]).sum())
    assert lost == pytest.approx(least, rel=0.01)


def test_the_form_is_that_of_the_converter(tmp_path: Path) -> None:
    base = tiny_gguf(tmp_path / "base.gguf", seed=1)
    _, adapter = made(base, tiny_gguf(tmp_path / "expert.gguf", seed=2), 80, untied=False)
    reader = gguf.GGUFReader(adapter)
    about = {key: reader.get_field(key).contents() for key in reader.fields if "GGUF" not in key}
    assert about["general.type"] == "adapter"
    assert about["general.architecture"] == "llama"
    assert about["adapter.type"] == "lora"
    assert about["adapter.lora.alpha"] == 64  # the largest rank that there is
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    assert shapes["blk.0.ffn_down.weight.lora_a"] == [INNER, 64]
    assert shapes["blk.0.ffn_down.weight.lora_b"] == [64, WIDTH]
    tokens = len(Weights(base)["token_embd.weight"])
    assert shapes["token_embd.weight.lora_a"] == [64, tokens]  # turned, as llama.cpp wants it
    assert shapes["token_embd.weight.lora_b"] == [64, WIDTH]


def test_the_command(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, expert = pair
    adapter, copy = base.with_name("lora.gguf"), base.with_name("copy.gguf")
    command = ["make_lora_expert", str(base), str(expert), str(adapter), "--untie", str(copy)]
    monkeypatch.setattr(sys, "argv", [*command, "--rank", "8"])
    make_lora_expert.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{adapter}  0.") and lines[0].endswith(f"{MATRICES + 2} matrices")
    assert copy.exists() == Weights(base).tied
    assert lines[-1].startswith("lost by the rank: ")
    monkeypatch.setattr(sys, "argv", [*command[:2], str(base), *command[3:4]])
    with pytest.raises(SystemExit, match="no difference"):
        make_lora_expert.main()


def test_no_model_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_gguf(tmp_path / "base.gguf", seed=1)
    expert = tiny_gguf(tmp_path / "expert.gguf", seed=2)
    before = base.read_bytes()
    odd = tmp_path / "x" / ".." / "base.gguf"
    for more in ([str(odd)], [str(tmp_path / "lora.gguf"), "--untie", str(base)]):
        command = ["make_lora_expert", str(base), str(expert), *more]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            make_lora_expert.main()
        assert ended.value.code == 2
    assert base.read_bytes() == before
