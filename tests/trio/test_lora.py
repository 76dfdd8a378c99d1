"""Experts that are an adapter of their base: the same expert, and a base that is not touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest

from capt_local import CombineOptions, GenerateOptions, LoadOptions, Method, Runtime
from capt_local.bundles.install import write_manifest
from capt_local.bundles.manifest import Bundle
from capt_local.errors import ModelError
from scripts import train_adapters
from tests.bundle_files import describe
from tests.real_models import smollm2
from tests.small_trio import SMALL_TRIO

CLINICAL = Path(__file__).resolve().parents[2] / "models" / "smollm2-clinical"
NOTE = (
    b"HISTORY OF PRESENT ILLNESS: The patient is a 58-year-old gentleman who presents with a "
    b"three-day history of productive cough, fever and chills. He denies any"
)
LOAD = LoadOptions(threads=1, context=512)
BASE, EXPERT = SMALL_TRIO / "base.gguf", SMALL_TRIO / "expert.gguf"
NORMS = {
    "attn_norm": ("attn_q", "attn_k", "attn_v"),
    "ffn_norm": ("ffn_gate", "ffn_up"),
    "output_norm": ("output",),
}


def nats(runtime: Runtime, method: Method, combine: CombineOptions | None = None) -> float:
    runtime.forget()
    options = GenerateOptions(method=method, combine=combine or CombineOptions())
    return runtime.score(NOTE, options).nats


def test_an_exported_adapter_is_taken_back_to_be_trained_on(tmp_path: Path) -> None:
    (tmp_path / "model").write_text(str(smollm2()))
    train_adapters.take(tmp_path, CLINICAL / "knowledge.gguf")
    train_adapters.export(tmp_path, tmp_path, ["knowledge"], bits=16)
    exported = (tmp_path / "knowledge.gguf").read_bytes()
    assert exported == (CLINICAL / "knowledge.gguf").read_bytes()


def test_the_published_model_with_our_clinical_adapter() -> None:
    smollm2()  # skips where the package is not installed
    with Runtime.open(CLINICAL, load=LOAD) as runtime:
        expert = nats(runtime, Method.EXPERT)
        assert expert < 0.85 * nats(runtime, Method.TARGET)
        # T E / A with T = A (docs/method.md: one shared vocabulary gives proxy tuning).
        alone = CombineOptions(alphas=(1.0,), plausibility=0.0)
        assert nats(runtime, Method.CAPT, alone) == pytest.approx(expert, rel=1e-2)


@dataclass(frozen=True)
class Files:
    """A target, a base with an output matrix of its own, and the base's adapter."""

    target: Path
    base: Path
    adapter: Path


def numbers(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a model, whose embeddings are its output, too."""
    found = {
        one.name: gguf.quants.dequantize(one.data, one.tensor_type)
        for one in gguf.GGUFReader(path).tensors
    }
    return {**found, "output.weight": found["token_embd.weight"]}


def write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_base(path: Path) -> None:
    """The base, whose embeddings an adapter can change without its output."""
    reader, writer = gguf.GGUFReader(BASE), gguf.GGUFWriter(path, "llama")
    for value in reader.fields.values():
        if value.name != "general.architecture" and not value.name.startswith("GGUF."):
            inner = value.types[-1] if len(value.types) > 1 else None
            writer.add_key_value(value.name, value.contents(), value.types[0], sub_type=inner)
    for tensor in reader.tensors:
        names = [tensor.name] + ["output.weight"] * (tensor.name == "token_embd.weight")
        for name in names:
            writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
    write(writer)


def write_adapter(path: Path) -> None:
    """The whole difference of expert and base; norms become part of the matrices behind them."""
    base, expert = numbers(BASE), numbers(EXPERT)
    before = {part: norm for norm, parts in NORMS.items() for part in parts}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    pairs = {}
    for name, weights in base.items():
        if weights.ndim == 2:
            part, scale = name.removesuffix(".weight").rpartition(".")[2], 1.0
            if part in before:
                norm = name.replace(part, before[part])
                scale = expert[norm] / base[norm]
            change = expert[name] * scale - weights
            whole = np.eye(weights.shape[1], dtype=np.float32)
            # The rows of embeddings are looked up in `a`.
            pairs[name] = (change, whole) if name == "token_embd.weight" else (whole, change)
    alpha = max(b.shape[1] for _, b in pairs.values())
    writer.add_float32("adapter.lora.alpha", float(alpha))
    for name, (a, b) in pairs.items():
        writer.add_tensor(f"{name}.lora_a", a.astype(np.float16))
        writer.add_tensor(f"{name}.lora_b", (b * (b.shape[1] / alpha)).astype(np.float16))
    write(writer)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """From the difference of expert and base of the small trio, in full rank."""
    folder = tmp_path_factory.mktemp("lora")
    made = Files(*(folder / f"{name}.gguf" for name in ("target", "base", "adapter")))
    made.target.write_bytes((SMALL_TRIO / "target.gguf").read_bytes())
    write_base(made.base)
    write_adapter(made.adapter)
    return made


@pytest.fixture(scope="module")
def adapted(files: Files) -> Iterator[Runtime]:
    bundle = Bundle.from_paths(files.target, base=files.base, expert_adapter=files.adapter)
    with Runtime.open(bundle, load=LOAD) as runtime:
        yield runtime


def test_the_full_rank_scores_and_answers_as_the_expert(adapted: Runtime, small: Runtime) -> None:
    for method in (Method.EXPERT, Method.BASE, Method.CAPT, Method.EXPERT_LED):
        assert nats(adapted, method) == pytest.approx(nats(small, method), rel=2e-3)
    texts = []
    for runtime in (adapted, small):  # through drafts and rewinding
        runtime.forget()
        answer = runtime.generate(NOTE.decode(), GenerateOptions(max_tokens=12), raw=True)
        assert len(list(answer)) == 12
        texts.append(answer.text_bytes)
    assert texts[0] == texts[1]


def test_the_base_is_that_of_a_base_alone(adapted: Runtime, files: Files) -> None:
    tokens = adapted.models["base"].tokenize(NOTE, special=False)
    rows = []
    adapted.forget()
    with Runtime.open(Bundle.from_paths(files.base), load=LOAD) as alone:
        adapted.models["expert"].extend(tokens)
        for model in (adapted.models["base"], alone.models["target"]):
            rows.append([model.extend(tokens, rows=8).copy()])
            for token in tokens[:4]:
                rows[-1].append(model.extend([token]).copy())
            model.rewind(0)
    adapted.models["expert"].rewind(0)
    for mine, its in zip(*rows, strict=True):
        np.testing.assert_array_equal(mine, its)


def test_a_bundle_with_an_adapter_is_checked_and_opened(files: Files, adapted: Runtime) -> None:
    folder = files.base.parent
    given = Bundle.from_paths(files.target, base=files.base, expert_adapter=files.adapter)
    models = {
        role: describe(role, model.path, adapters=model.adapters)
        for role, model in given.models.items()
    }
    write_manifest(Bundle("lora", models, context=512), folder)
    with Runtime.open(folder, load=LoadOptions(threads=1)) as runtime:
        assert nats(runtime, Method.EXPERT) == nats(adapted, Method.EXPERT)
    data = bytearray(files.adapter.read_bytes())
    data[len(data) // 2] ^= 1
    files.adapter.write_bytes(data)
    with pytest.raises(ModelError, match=r"The expert's adapter adapter\.gguf is not the file"):
        Runtime.open(folder, load=LOAD)
