"""`doctor`: exit 0 when all is well, 3 when the bundle is broken, 4 when it does not fit."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from capt_local import config as site_config
from capt_local.bundles import store, verify
from capt_local.bundles.create import describe, write_manifest
from capt_local.bundles.manifest import Bundle, Role
from capt_local.bundles.verify import Check
from capt_local.cli.doctor import overlap
from capt_local.llama import memory
from capt_local.llama import probe as probe_module
from capt_local.llama.library import Library
from tests.cli.conftest import Run
from tests.fakes import make_vocabulary
from tests.tiny_models import tiny_gguf
from tests.tiny_vocabularies import Flavour

ROLES: Mapping[Role, Flavour] = {"target": "bpe", "expert": "spm", "base": "spm"}


def make_bundle(folder: Path, flavours: Mapping[Role, Flavour] = ROLES) -> Path:
    folder.mkdir()
    models = {
        role: describe(role, tiny_gguf(folder / f"{role}.gguf", seed=number, flavour=flavour))
        for number, (role, flavour) in enumerate(flavours.items())
    }
    write_manifest(Bundle(id=folder.name, models=models, version="3"), folder)
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "tiny")


def test_a_whole_bundle(bundle: Path, run: Run) -> None:
    result = run("doctor", "-m", str(bundle))
    assert result.code == 0, result.out
    assert result.out.endswith("All is well.\n")
    assert result.err == ""
    for part in ("llama-cpp-python", "0.3.36", "build flags", "verified", "fits"):
        assert part in result.out


def test_the_same_as_json(bundle: Path, run: Run) -> None:
    found = json.loads(run("doctor", "-m", str(bundle), "--json").out)
    assert (found["ok"], found["exit_code"], found["problems"]) == (True, 0, [])
    assert found["software"]["llama-cpp-python"] == "0.3.36"
    assert found["bundle"]["roles"] == "target, expert, base"
    assert found["memory of the bundle"]["fits"] is True
    assert found["roles"]["expert and base: same vocabulary"] is True
    assert found["roles"]["expert and base: same chat template"] is True


def test_expert_and_base_of_different_vocabularies_are_a_warning(tmp_path: Path, run: Run) -> None:
    mixed = make_bundle(tmp_path / "mixed", {"target": "bpe", "expert": "spm", "base": "bpe"})
    found = json.loads(run("doctor", "-m", str(mixed), "--json").out)
    assert found["exit_code"] == 0
    assert found["roles"]["expert and base: same vocabulary"] is False
    assert any("different vocabularies" in line for line in found["warnings"])


def test_a_target_alone_is_well(tmp_path: Path, run: Run) -> None:
    alone = make_bundle(tmp_path / "alone", {"target": "bpe"})
    found = json.loads(run("doctor", "-m", str(alone), "--json").out)
    assert found["exit_code"] == 0
    assert list(found["roles"]) == ["target"]


def test_one_flipped_byte_is_exit_3(bundle: Path, run: Run) -> None:
    file = bundle / "expert.gguf"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    result = run("doctor", "-m", str(bundle))
    assert result.code == 3
    assert "problem: The expert model" in result.out
    assert "All is well" not in result.out
    # The rest is told all the same, but nothing of the wrong file is loaded.
    assert "software" in result.out
    assert "roles" not in result.out.split("problem:")[0].splitlines()


def test_a_missing_bundle_is_exit_3(tmp_path: Path, run: Run) -> None:
    result = run("doctor", "-m", str(tmp_path / "nowhere"), "--json")
    found = json.loads(result.out)
    assert (result.code, found["exit_code"], found["ok"]) == (3, 3, False)
    assert len(found["problems"]) == 1


def test_a_file_that_is_no_gguf_is_exit_3(tmp_path: Path, run: Run) -> None:
    (tmp_path / "x.gguf").write_bytes(b"no model at all")
    assert run("doctor", "--target", str(tmp_path / "x.gguf")).code == 3


def test_models_that_do_not_fit_are_exit_4(
    bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 20)
    result = run("doctor", "-m", str(bundle), "--json")
    found = json.loads(result.out)
    assert result.code == 4
    assert found["memory of the bundle"]["fits"] is False
    assert "Not enough memory" in found["problems"][0]


def test_files_without_a_manifest_say_so(tmp_path: Path, run: Run) -> None:
    file = tiny_gguf(tmp_path / "t.gguf", seed=1)
    found = json.loads(run("doctor", "--target", str(file), "--json").out)
    assert found["exit_code"] == 0
    assert found["bundle"]["digests"] == "none known"
    assert found["warnings"]


def test_the_estimate_is_told_in_parts(bundle: Path, run: Run) -> None:
    small = json.loads(run("doctor", "-m", str(bundle), "-c", "256", "--json").out)
    large = json.loads(run("doctor", "-m", str(bundle), "-c", "8192", "--json").out)
    room = small["memory of the bundle"]
    assert "KV cache" in room["target"] and "compute" in room["target"]
    assert room["needed bytes"] < large["memory of the bundle"]["needed bytes"]
    assert room["layers on the GPU"] == "none: no GPU is live"
    assert (room["context"], large["memory of the bundle"]["context"]) == ("256", "8,192")
    table = run("doctor", "-m", str(bundle)).out
    assert "needed bytes" not in table and "needed " in table


def test_the_backend_has_multiplied(
    bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = json.loads(run("doctor", "-m", str(bundle), "--json").out)
    assert found["backend"]["CPU multiplies two matrices"] == "rightly"
    monkeypatch.setattr(Library, "computes", lambda *_: False)
    result = run("doctor", "-m", str(bundle))
    assert result.code == 3
    assert "problem: CPU does not multiply" in result.out


def test_files_that_others_can_write_are_a_warning(bundle: Path, run: Run) -> None:
    (bundle / "base.gguf").chmod(0o666)
    found = json.loads(run("doctor", "-m", str(bundle), "--json").out)
    assert found["exit_code"] == 0
    assert found["files"]["writable by others"] == 1
    assert any("base.gguf" in line and "chmod" in line for line in found["warnings"])


def test_a_broken_bundle_in_the_store_is_a_warning(
    bundle: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store" / "bad").mkdir(parents=True)
    (tmp_path / "store" / "bad" / "bundle.toml").write_text("nonsense")
    monkeypatch.setenv("CAPT_LOCAL_MODELS", str(tmp_path / "store"))
    found = json.loads(run("doctor", "-m", str(bundle), "--json").out)
    assert found["exit_code"] == 0
    assert (found["store"]["bundles"], found["store"]["broken"]) == ("demo", 1)
    assert any("bad" in line for line in found["warnings"])


def test_another_bundle_of_the_store_that_is_not_whole_is_a_warning(bundle: Path, run: Run) -> None:
    spoilt = make_bundle(mine(), {"target": "bpe"})
    data = bytearray((spoilt / "target.gguf").read_bytes())
    (spoilt / "target.gguf").write_bytes(data[:-1])
    found = json.loads(run("doctor", "-m", str(bundle), "--json").out)
    assert (found["exit_code"], found["store"]["broken"]) == (0, 1)
    assert any("mine is not whole: target.gguf of the target has" in w for w in found["warnings"])
    data[-1] ^= 1
    (spoilt / "target.gguf").write_bytes(data)
    quick = json.loads(run("doctor", "-m", str(bundle), "--json").out)
    assert quick["store"]["broken"] == 0 and "not read" in quick["store"]["digests of all"]
    whole = json.loads(run("doctor", "-m", str(bundle), "--verify", "always", "--json").out)
    assert whole["store"]["broken"] == 1 and whole["store"]["digests of all"] == "verified"


def test_the_flag_says_how_digests_are_checked(
    bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Check]] = []

    def check(of: Bundle, progress: object = None, check: Check = Check.ALWAYS) -> object:
        asked.append((of.id, check))
        return verify.Verification()

    monkeypatch.setattr(verify, "verify", check)
    told = []
    for flag in ([], ["--verify", "cached"], ["--verify", "always"], ["--no-verify"]):
        found = json.loads(run("doctor", "--json", "-m", str(bundle), *flag).out)
        told.append(found["bundle"]["digests"])
    checks = [check for name, check in asked if name == "tiny"]
    assert checks == [Check.CACHED, Check.CACHED, Check.ALWAYS, Check.NEVER]
    assert told == [
        "verified, now or since they last changed",
        "verified, now or since they last changed",
        "verified",
        "not checked",
    ]


def test_a_kernel_that_does_not_hold_the_first_looks_process_is_told(
    bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for forbidden in (True, False):
        monkeypatch.setattr(probe_module, "calls_are_forbidden", lambda answer=forbidden: answer)
        found = json.loads(run("doctor", "--json", "-m", str(bundle)).out)
        assert found["first look's process"] == {"system calls forbidden to it": forbidden}
        told = any("does not forbid system calls" in line for line in found["warnings"])
        assert told == (sys.platform == "linux" and not forbidden)
        assert found["exit_code"] == 0


def mine() -> Path:
    store.user_folder().mkdir(parents=True)
    return store.user_folder() / "mine"


def test_keys_are_told(bundle: Path, run: Run, tmp_path: Path) -> None:
    found = json.loads(run("doctor", "-m", str(bundle), "--json").out)
    assert found["keys"] == {"of the site": "none", "of the user": "none"}
    run("models", "keygen", "-o", str(tmp_path / "house"))
    run("models", "trust", str(tmp_path / "house.pub"))
    found = json.loads(run("doctor", "-m", str(bundle), "--json").out)
    assert found["keys"]["of the user"].startswith("house ")
    (key,) = site_config.key_folders()[1].iterdir()
    key.chmod(0o666)
    result = run("doctor", "-m", str(bundle))
    assert result.code == 3 and "others may write it" in result.out


def test_everything_that_a_site_asks_for_is_told(bundle: Path, run: Run) -> None:
    """Part by part: what runs here, on what, with how much memory, and who else could look in."""
    found = json.loads(run("doctor", "-m", str(bundle), "--json").out)
    parts = {
        "software": ["capt-local", "llama-cpp-python", "llama.cpp", "Python", "platform",
                     "build flags"],
        "backend": ["live", "GPU support in this build", "CPU multiplies two matrices",
                    "weight formats left out, since they crash"],
        "memory": ["total bytes", "available bytes"],
        "private memory": ["swap", "core dumps of this process"],
        "settings": ["site file", "user file", "forbidden by the site"],
        "keys": ["of the site", "of the user"],
        "store": ["place", "bundles", "broken", "left of stopped imports"],
        "bundle": ["id", "version", "digests", "signer"],
        "files": ["writable by others"],
        "memory of the bundle": ["context", "target", "needed bytes", "available bytes", "fits",
                                 "layers on the GPU"],
        "roles": ["target", "expert and base: same vocabulary"],
    }  # fmt: skip
    for section, names in parts.items():
        assert set(names) <= found[section].keys(), section
    text = run("doctor", "-m", str(bundle)).out
    assert all(section in text for section in parts)


def test_overlap_of_vocabularies() -> None:
    target = make_vocabulary(["fever", "cough"], all_bytes=False)
    expert = make_vocabulary(["fever", "rash", "pain"], all_bytes=False)
    assert overlap(target, expert) == 0.5
    assert overlap(target, target) == 1.0


def test_what_the_other_verbs_refuse_is_a_problem_here(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    file = tiny_gguf(folder / "target.gguf", seed=1, template=None)
    write_manifest(Bundle(id="bare", models={"target": describe("target", file)}), folder)
    refused = run("generate", "-m", str(folder), "-p", "x", "-n", "1")
    result = run("doctor", "-m", str(folder))
    assert (refused.code, result.code) == (3, 3)
    assert "has no chat template" in refused.err and "has no chat template" in result.out
    for verb in (["doctor"], ["generate", "-p", "x", "-n", "1"]):
        assert run(*verb, "-m", str(folder), "--template", "plain").code == 0
