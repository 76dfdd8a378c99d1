"""An expert that is its base with an adapter: flags, environment, bundle, doctor, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capt_local.bundles.create import describe, write_manifest
from capt_local.bundles.manifest import AdapterFile, Bundle
from tests.cli.conftest import Run
from tests.cli.fake_runtime import Script
from tests.tiny_models import tiny_adapter, tiny_gguf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Target, base and an adapter that fits it."""
    tiny_gguf(tmp_path / "target.gguf", seed=1, flavour="spm")
    tiny_gguf(tmp_path / "base.gguf", seed=2)
    tiny_adapter(tmp_path / "lora.gguf", seed=3)
    return tmp_path


def flags(folder: Path, adapter: str = "lora.gguf") -> list[str]:
    given = {"--target": "target.gguf", "--base": "base.gguf", "--expert-adapter": adapter}
    return [part for flag, name in given.items() for part in (flag, str(folder / name))]


def opened(script: Script) -> Any:
    return script.calls[0]["bundle"]


def test_the_expert_is_the_base_with_its_adapter(run: Run, script: Script, folder: Path) -> None:
    done = run("generate", *flags(folder, "lora.gguf=0.5"), "-p", "x", "--json", "-v")
    assert done.code == 0, done.err
    bundle = opened(script)
    assert bundle.models["expert"].path == bundle.models["base"].path == folder / "base.gguf"
    assert bundle.adapters == {"expert": (AdapterFile.given(folder / "lora.gguf", 0.5),)}
    assert "expert: llama, Q8_0, context 256, 0 layers on the GPU, adapter lora.gguf x 0.5" in (
        done.err.replace("\n", " ")
    )
    models = json.loads(done.out)["provenance"]["models"]
    (adapter,) = models["expert"]["adapters"]
    assert (adapter["sha256"], adapter["scale"]) == (None, 0.5)
    assert "adapters" not in models["base"]


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ("none.gguf", "The adapter none.gguf is not there"),
        ("other.gguf", "is made for the architecture gemma3, the model has llama"),
    ],
)
def test_a_wrong_adapter_is_one_line_and_exit_3(
    run: Run, folder: Path, adapter: str, said: str
) -> None:
    tiny_adapter(folder / "other.gguf", seed=3, architecture="gemma3")
    for verb in (["generate", "-p", "x"], ["doctor"]):
        done = run(*verb, *flags(folder, adapter), "-t", "1")
        assert done.code == 3
        assert said in (done.err or done.out).replace("\n", " ")
        assert str(folder) not in done.err and "Traceback" not in done.err


def test_a_bundle_with_an_adapter_is_examined(run: Run, folder: Path) -> None:
    models = {
        "target": describe("target", folder / "target.gguf"),
        "expert": describe(
            "expert", folder / "base.gguf", adapters=(AdapterFile.given(folder / "lora.gguf"),)
        ),
        "base": describe("base", folder / "base.gguf"),
    }
    write_manifest(Bundle("lora", models), folder)
    found = json.loads(run("doctor", "-m", str(folder), "--json").out)
    assert found["ok"], found["problems"]
    assert found["bundle"]["digests"].startswith("verified")
    room = found["memory of the bundle"]
    assert "MiB, adapter 0 MiB" in room["expert"] and "weights shared" in room["base"]
    assert found["roles"]["expert"].endswith("adapter lora.gguf")
    data = bytearray((folder / "lora.gguf").read_bytes())
    data[-1] ^= 1
    (folder / "lora.gguf").write_bytes(data)
    found = json.loads(run("doctor", "-m", str(folder), "--json").out)
    assert found["exit_code"] == 3
    assert "The expert's adapter lora.gguf is not the file" in found["problems"][0]
