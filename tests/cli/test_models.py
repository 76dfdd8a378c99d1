"""Which files become which models: adapters, and several pairs of expert and base."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from capt_local.bundles.install import write_manifest
from capt_local.bundles.manifest import AdapterFile, Bundle, Defaults, roles
from tests.bundle_files import describe
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
    [("none.gguf", "The adapter none.gguf is not there"), ("other.gguf", "has llama")],
)
def test_a_wrong_adapter_is_one_line_and_exit_3(
    run: Run, folder: Path, adapter: str, said: str
) -> None:
    tiny_adapter(folder / "other.gguf", seed=3, architecture="gemma3")
    done = run("generate", "-p", "x", *flags(folder, adapter), "-t", "1")
    assert done.code == 3 and said in done.err.replace("\n", " ")
    assert str(folder) not in done.err and "Traceback" not in done.err


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Five model files by role."""
    places = {role: tmp_path / f"{role}.gguf" for role in roles(2)}
    for role, path in places.items():
        path.write_bytes(role.encode())
    return {role: str(path) for role, path in places.items()}


def pairs(files: dict[str, str]) -> list[str]:
    return [part for role, path in files.items() for part in (f"--{role.split('-')[0]}", path)]


def paths(script: Script) -> dict[str, str]:
    return {role: str(model.path) for role, model in opened(script).models.items()}


def test_pairs_in_the_order_of_flags_and_variables(
    run: Run, script: Script, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("generate", *pairs(files), "-p", "x", "--alpha", "0.5,1").code == 0
    assert paths(script) == files
    assert script.calls[1]["options"].combine.alphas == (0.5, 1.0)
    script.calls.clear()
    for role in ("target", "expert", "base"):
        several = [path for name, path in files.items() if name.split("-")[0] == role]
        monkeypatch.setenv(f"CAPT_LOCAL_{role.upper()}", os.pathsep.join(several))
    assert run("generate", "-p", "x").code == 0
    assert paths(script) == files


@pytest.mark.parametrize(
    ("more", "alphas"),
    [
        ([], (0.5, 1.0)),
        (["--alpha", "2"], (2.0,)),
        (["--weights", "1,1,1,1,1"], ()),
        (["--method", "capt-paper"], (0.5,)),  # which uses the first pair
    ],
)
def test_what_a_bundle_says_about_its_pairs(
    run: Run,
    script: Script,
    files: dict[str, str],
    tmp_path: Path,
    more: list[str],
    alphas: tuple[float, ...],
) -> None:
    models = {role: describe(role, Path(path)) for role, path in files.items()}
    write_manifest(Bundle("two", models, defaults=Defaults(alphas=(0.5, 1.0))), tmp_path)
    assert run("generate", "-m", str(tmp_path), "-p", "x", *more).code == 0
    assert paths(script) == files
    assert script.calls[1]["options"].combine.alphas == alphas
