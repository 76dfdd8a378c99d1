"""The demo's expert as an adapter of its base: the same expert, and a base that is not touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from capt_local import GenerateOptions, LoadOptions, Method, Runtime
from capt_local.bundles.create import describe, write_manifest
from capt_local.bundles.manifest import Bundle
from capt_local.bundles.store import find
from capt_local.errors import ModelError
from scripts.make_lora_expert import Weights, make_adapter, write_adapter, write_untied

NOTE = b"The patient is a 61-year-old woman who presents with shortness of breath. She was given"
TARGET, EXPERT, BASE = (find("demo").models[role].path for role in ("target", "expert", "base"))
LOAD = LoadOptions(threads=1, context=512)


@dataclass(frozen=True)
class Files:
    """A base with an output matrix of its own, and its adapters."""

    base: Path
    full: Path
    small: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("lora")
    made = Files(folder / "base.gguf", folder / "full.gguf", folder / "small.gguf")
    base, expert = Weights(BASE), Weights(EXPERT)
    write_untied(made.base, base)
    for path, rank in ((made.full, None), (made.small, 4)):
        write_adapter(path, base, make_adapter(base, expert, rank, untied=True)[0])
    return made


@pytest.fixture(scope="module")
def adapted(files: Files) -> Iterator[Runtime]:
    bundle = Bundle.from_paths(TARGET, base=files.base, expert_adapter=files.full)
    with Runtime.open(bundle, load=LOAD) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def demo() -> Iterator[Runtime]:
    with Runtime.open("demo", load=LOAD) as runtime:
        yield runtime


def nats(runtime: Runtime, method: Method) -> float:
    runtime.forget()
    return runtime.score(NOTE, GenerateOptions(method=method)).nats


@pytest.mark.parametrize("method", [Method.EXPERT, Method.BASE, Method.CAPT, Method.EXPERT_LED])
def test_the_full_rank_scores_as_the_expert(
    adapted: Runtime, demo: Runtime, method: Method
) -> None:
    assert nats(adapted, method) == pytest.approx(nats(demo, method), rel=2e-3)
    assert nats(demo, Method.EXPERT) < 0.8 * nats(demo, Method.BASE)


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


def test_an_answer_goes_through_drafts_and_rewinding(adapted: Runtime, demo: Runtime) -> None:
    options = GenerateOptions(max_tokens=12)
    texts = []
    for runtime in (adapted, demo):
        runtime.forget()
        answer = runtime.generate(NOTE.decode(), options, raw=True)
        assert len(list(answer)) == 12
        texts.append(answer.text_bytes)
    assert texts[0] == texts[1]


def test_a_bundle_with_an_adapter_is_checked_and_opened(files: Files, adapted: Runtime) -> None:
    folder = files.base.parent
    target = folder / "target.gguf"
    target.write_bytes(TARGET.read_bytes())
    given = Bundle.from_paths(target, base=files.base, expert_adapter=files.full)
    models = {
        role: describe(role, model.path, adapters=model.adapters)
        for role, model in given.models.items()
    }
    write_manifest(Bundle("lora", models, context=512), folder)
    with Runtime.open(folder, load=LoadOptions(threads=1)) as runtime:
        assert nats(runtime, Method.EXPERT) == nats(adapted, Method.EXPERT)
    data = bytearray(files.full.read_bytes())
    data[len(data) // 2] ^= 1
    files.full.write_bytes(data)
    with pytest.raises(ModelError, match=r"The expert's adapter full\.gguf is not the file"):
        Runtime.open(folder, load=LOAD)
