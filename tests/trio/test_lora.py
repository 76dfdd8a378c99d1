"""Experts that are an adapter of their base: the same expert, and a base that is not touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from capt_local import CombineOptions, GenerateOptions, LoadOptions, Method, Runtime
from capt_local.bundles.create import describe, write_manifest
from capt_local.bundles.manifest import Bundle
from capt_local.errors import ModelError
from scripts.make_lora_expert import Weights, make_adapter, write_adapter, write_untied
from tests.real_models import smollm2
from tests.small_trio import SMALL_TRIO

CLINICAL = Path(__file__).resolve().parents[2] / "models" / "smollm2-clinical"
NOTE = (
    b"HISTORY OF PRESENT ILLNESS: The patient is a 58-year-old gentleman who presents with a "
    b"three-day history of productive cough, fever and chills. He denies any"
)
LOAD = LoadOptions(threads=1, context=512)


def nats(runtime: Runtime, method: Method, combine: CombineOptions | None = None) -> float:
    runtime.forget()
    options = GenerateOptions(method=method, combine=combine or CombineOptions())
    return runtime.score(NOTE, options).nats


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


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """From the difference of expert and base of the small trio, in full rank."""
    folder = tmp_path_factory.mktemp("lora")
    made = Files(*(folder / f"{name}.gguf" for name in ("target", "base", "adapter")))
    made.target.write_bytes((SMALL_TRIO / "target.gguf").read_bytes())
    base, expert = Weights(SMALL_TRIO / "base.gguf"), Weights(SMALL_TRIO / "expert.gguf")
    write_untied(made.base, base)
    write_adapter(made.adapter, base, make_adapter(base, expert, None, untied=True)[0])
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
