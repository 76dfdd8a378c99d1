"""`doctor`: exit 0 without problems, 3 when the bundle is broken, 4 when it does not fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from capt_local.bundles.install import write_manifest
from capt_local.bundles.manifest import Bundle, Role
from capt_local.cli import doctor
from capt_local.cli.doctor import Diagnosis
from capt_local.llama import devices as devices_module
from capt_local.llama import resources
from capt_local.llama.devices import GPU_RESERVE, Device
from capt_local.llama.gguf_header import read_header
from capt_local.llama.library import Library
from capt_local.llama.options import LoadOptions
from capt_local.llama.resources import estimate
from tests.bundle_files import describe
from tests.cli.conftest import Run, one_model
from tests.tiny_models import tiny_gguf
from tests.tiny_vocabularies import Flavour

ROLES: Mapping[Role, Flavour] = {"target": "bpe", "expert": "spm", "base": "spm"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    models = {
        role: describe(role, tiny_gguf(folder / f"{role}.gguf", seed=number, flavour=flavour))
        for number, (role, flavour) in enumerate(ROLES.items())
    }
    write_manifest(Bundle(id=folder.name, models=models, version="3"), folder)
    return folder


def test_a_whole_bundle(bundle: Path, run: Run) -> None:
    result = run("doctor", "-m", str(bundle))
    assert (result.code, result.err) == (0, ""), result.out
    assert result.out.endswith("No problems found.\n")
    for part in ("llama-cpp-python", "0.3.36", "build flags", "verified", "fits"):
        assert part in result.out


def test_one_flipped_byte_is_exit_3(bundle: Path, run: Run) -> None:
    file = bundle / "expert.gguf"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    found = json.loads(run("doctor", "-m", str(bundle), "--json").out)
    assert found["exit_code"] == 3 and "The expert model" in found["problems"][0]
    # The rest is there all the same, but nothing of the wrong file is loaded.
    assert "software" in found and "roles" not in found


def test_what_is_no_bundle_or_model_is_exit_3(tmp_path: Path, run: Run) -> None:
    (tmp_path / "x.gguf").write_bytes(b"no model at all")
    for flags in (["-m", str(tmp_path / "nowhere")], ["--target", str(tmp_path / "x.gguf")]):
        result = run("doctor", *flags, "--json")
        found = json.loads(result.out)
        assert (result.code, found["exit_code"], found["ok"]) == (3, 3, False)
        assert len(found["problems"]) == 1


def test_models_that_do_not_fit_are_exit_4(
    bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "available_memory", lambda: 1 << 20)
    result = run("doctor", "-m", str(bundle), "--json")
    found = json.loads(result.out)
    assert result.code == 4
    assert found["memory of the bundle"]["fits"] is False
    assert "Not enough memory" in found["problems"][0]


def test_the_plan_for_gpus_is_shown_before_anything_loads(
    bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = Library.devices

    def devices(self: Library) -> tuple[Device, ...]:
        # The target alone fits on the first; the second takes what of the expert it can.
        made_up = ((name, free + GPU_RESERVE) for name, free in (("G0", whole), ("G1", whole - 1)))
        return (*true(self), *(Device(name, "", "GPU", free, free) for name, free in made_up))

    one = estimate(read_header(bundle / "target.gguf"), LoadOptions())
    whole = one.buffers + sum(one.layer_bytes())
    monkeypatch.setattr(Library, "devices", devices)
    monkeypatch.setattr(devices_module, "device_computes", lambda *_: True)
    monkeypatch.setattr(Diagnosis, "_roles", lambda *_: {})
    found = json.loads(run("doctor", "-m", str(bundle), "--json").out)["memory of the bundle"]
    assert found["layers on the GPU"].startswith("target 3 of 3 (G0 3), expert 2 of 3 (G1 2)")
    assert found["on G0"] == f"{whole / (1 << 20):.0f} MiB of {whole / (1 << 20) + 512:.0f} MiB"
    refused = run("doctor", "-m", str(bundle), "--device", "base:G2")
    assert refused.code == 2 and "it has CPU, G0, G1" in refused.out
    too_much = run("doctor", "-m", str(bundle), "-ngl", "all", "--device", "G1")
    assert too_much.code == 0 and "warning: G1 has" in too_much.out


def test_files_that_others_can_write_are_a_warning(bundle: Path, run: Run) -> None:
    (bundle / "base.gguf").chmod(0o666)
    found = json.loads(run("doctor", "-m", str(bundle), "--json").out)
    assert found["exit_code"] == 0
    assert found["files"]["writable by others"] == 1
    assert any("base.gguf" in line and "chmod" in line for line in found["warnings"])


def test_what_the_other_verbs_refuse_is_a_problem_here(tmp_path: Path, run: Run) -> None:
    folder = one_model(tmp_path / "bare", template=None)
    refused = run("generate", "-m", str(folder), "-p", "x", "-n", "1")
    result = run("doctor", "-m", str(folder))
    assert (refused.code, result.code) == (3, 3)
    assert "has no chat template" in refused.err and "has no chat template" in result.out
    for verb in (["doctor"], ["generate", "-p", "x", "-n", "1"]):
        assert run(*verb, "-m", str(folder), "--template", "plain").code == 0


def test_swap_that_is_not_encrypted_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listing, block = tmp_path / "swaps", tmp_path / "block"
    for name, uuid in (("dm-1", "CRYPT-PLAIN-swap"), ("dm-2", "LVM-abc")):
        (block / name / "dm").mkdir(parents=True)
        (block / name / "dm" / "uuid").write_text(uuid)
    monkeypatch.setattr(psutil, "swap_memory", lambda: type("Swap", (), {"total": 1 << 30}))
    monkeypatch.setattr(doctor, "_SWAPS", listing)
    monkeypatch.setattr(doctor, "_BLOCK", block)
    for name, safe in (
        ("/dev/dm-1", True), ("/dev/dm-2", False), ("/dev/zram0", True), ("/nowhere/file", False)
    ):  # fmt: skip
        listing.write_text(f"Filename Type Size Used Priority\n{name} partition 8388604 0 -2\n")
        found = doctor.Diagnosis()
        assert found._private_memory()["swap"] == "1,024 MiB"
        assert any(name in line for line in found.warnings) is not safe
