"""Which files become which models, and where these go, by flags, settings and defaults."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from capt_local.bundles.install import write_manifest
from capt_local.bundles.manifest import AdapterFile, Bundle, Defaults, roles
from capt_local.llama.options import LoadOptions, Placement
from tests.bundle_files import describe
from tests.cli.conftest import Run
from tests.cli.fake_runtime import Script
from tests.tiny_models import tiny_adapter, tiny_gguf

ASK = ("generate", "{models}", "-p", "x")


@pytest.fixture
def adapted(tmp_path: Path) -> list[str]:
    """Flags for a target, a base and an adapter that fits it, which is the last."""
    tiny_gguf(tmp_path / "target.gguf", seed=1, flavour="spm")
    tiny_gguf(tmp_path / "base.gguf", seed=2)
    tiny_adapter(tmp_path / "lora.gguf", seed=3)
    names = {"--target": "target.gguf", "--base": "base.gguf", "--expert-adapter": "lora.gguf"}
    return [part for flag, name in names.items() for part in (flag, str(tmp_path / name))]


def test_the_expert_is_the_base_with_its_adapter(
    run: Run, script: Script, adapted: list[str]
) -> None:
    *flags, lora = adapted
    done = run("generate", *flags, f"{lora}=0.5", "-p", "x", "--json", "-v")
    assert done.code == 0, done.err
    bundle = script.calls[0]["bundle"]
    assert bundle.models["expert"].path == bundle.models["base"].path == Path(adapted[3])
    assert bundle.adapters == {"expert": (AdapterFile.given(Path(lora), 0.5),)}
    assert "expert: llama, Q8_0, context 256, 0 layers on the GPU, adapter lora.gguf x 0.5" in (
        done.err.replace("\n", " ")
    )
    models = json.loads(done.out)["provenance"]["models"]
    (adapter,) = models["expert"]["adapters"]
    assert (adapter["sha256"], adapter["scale"]) == (None, 0.5)
    assert "adapters" not in models["base"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("none.gguf", "The adapter none.gguf is not there"), ("other.gguf", "has llama")],
)
def test_a_wrong_adapter_is_one_line_and_exit_3(
    run: Run, adapted: list[str], tmp_path: Path, name: str, said: str
) -> None:
    tiny_adapter(tmp_path / "other.gguf", seed=3, architecture="gemma3")
    done = run("generate", "-p", "x", *adapted[:-1], str(tmp_path / name), "-t", "1")
    assert done.code == 3 and said in done.err.replace("\n", " ")
    assert str(tmp_path) not in done.err and "Traceback" not in done.err


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Five model files by role."""
    places = {role: tmp_path / f"{role}.gguf" for role in roles(2)}
    for role, path in places.items():
        path.write_bytes(role.encode())
    return {role: str(path) for role, path in places.items()}


def paths(script: Script) -> dict[str, str]:
    return {role: str(one.path) for role, one in script.calls[0]["bundle"].models.items()}


def test_pairs_in_the_order_of_flags_and_variables(
    run: Run, script: Script, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [part for role, path in files.items() for part in (f"--{role.split('-')[0]}", path)]
    assert run("generate", *flags, "-p", "x", "--alpha", "0.5,1").code == 0
    assert paths(script) == files
    assert script.calls[1]["options"].combine.alphas == (0.5, 1.0)
    script.calls.clear()
    for role in ("target", "expert", "base"):
        several = [path for name, path in files.items() if name.split("-")[0] == role]
        monkeypatch.setenv(f"CAPT_LOCAL_{role.upper()}", os.pathsep.join(several))
    assert run("generate", "-p", "x").code == 0
    assert paths(script) == files


def test_what_a_bundle_says_about_its_pairs(
    run: Run, script: Script, files: dict[str, str], tmp_path: Path
) -> None:
    models = {role: describe(role, Path(path)) for role, path in files.items()}
    write_manifest(Bundle("two", models, defaults=Defaults(alphas=(0.5, 1.0))), tmp_path)
    cases: dict[tuple[str, ...], tuple[float, ...]] = {
        (): (0.5, 1.0),
        ("--alpha", "2"): (2.0,),
        ("--weights", "1,1,1,1,1"): (),
        ("--method", "capt-paper"): (0.5,),  # which uses the first pair
    }
    for more, alphas in cases.items():
        script.calls.clear()
        assert run("generate", "-m", str(tmp_path), "-p", "x", *more).code == 0
        assert paths(script) == files
        assert script.calls[1]["options"].combine.alphas == alphas, more


# Where models go.


def opened(script: Script) -> LoadOptions:
    load: Any = script.calls[0]["load"]
    assert isinstance(load, LoadOptions)
    return load


def test_each_model_has_its_own_place(run: Run, script: Script) -> None:
    flags = [
        *("-ngl", "20", "-ngl", "expert:all", "--device", "G0", "--device", "expert:G1,G2"),
        *("--device", "base:CPU", "--tensor-split", "expert:3,1", "--kv-type", "q4_0"),
    ]
    assert run(*ASK, *flags).code == 0
    load = opened(script)
    assert load.kv_type == "q4_0"
    assert load.placement("target") == Placement(20, ("G0",))
    assert load.placement("expert") == Placement("all", ("G1", "G2"), (3.0, 1.0))
    assert load.placement("base") == Placement("auto", ("CPU",))  # a place stands above a number
    one = load.of("expert")
    assert (one.gpu_layers, one.devices, one.tensor_split) == ("all", ("G1", "G2"), (3.0, 1.0))
    script.calls.clear()
    assert run(*ASK).code == 0
    assert opened(script) == LoadOptions()


def test_settings_say_it_too(
    run: Run, script: Script, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One value needs no brackets, whatever its kind; the numbers of a split are one text.
    user.write_text("[options]\ngpu-layers = 12\ndevice = 'G0,G1'\ntensor-split = ['1,2']\n")
    assert run(*ASK).code == 0
    assert opened(script).placement("expert") == Placement(12, ("G0", "G1"), (1.0, 2.0))
    user.write_text("[options]\ntensor-split = [1, 2]\n")
    assert "--tensor-split is given twice" in run(*ASK).err
    monkeypatch.setenv("CAPT_LOCAL_TENSOR_SPLIT", "1,2 base:1")
    monkeypatch.setenv("CAPT_LOCAL_GPU_LAYERS", "7 base:0")
    monkeypatch.setenv("CAPT_LOCAL_KV_TYPE", "q8_0")
    script.calls.clear()
    assert run(*ASK).code == 0
    load = opened(script)
    assert (load.placement("expert"), load.kv_type) == (Placement(7, (), (1.0, 2.0)), "q8_0")
    assert load.placement("base") == Placement(0, (), (1.0,))


@pytest.mark.parametrize(
    "flags",
    [
        "--device judge:G0", "--device G0,G0", "--device G0 --device G0", "--device target:CPU,G0",
        "--device base:CPU -ngl base:3", "-ngl some", "-ngl expert:-1", "-ngl 3 -ngl 4",
        "--tensor-split 1,x", "--tensor-split nan,1", "--tensor-split=-1,2", "--tensor-split 0,0",
        "--device G0,G1 --tensor-split 1", "--tensor-split expert:", "--device expert:",
        "--kv-type f32",
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_one_line_and_exit_2(run: Run, script: Script, flags: str) -> None:
    result = run(*ASK, *flags.split())
    assert result.code == 2 and not script.calls
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
