"""`models create` with files that llama.cpp really loads and runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from capt_local.bundles import store
from capt_local.bundles.manifest import MANIFEST, Style, read_bundle
from capt_local.cli import models_create
from capt_local.version import __version__
from tests.cli.conftest import Result, Run
from tests.tiny_models import tiny_adapter, tiny_gguf

ROLES = ("target", "expert", "base")
Create = Callable[..., Result]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {role: tiny_gguf(folder / f"{role}.gguf", seed=seed) for seed, role in enumerate(ROLES)}
    made["bare"] = tiny_gguf(folder / "bare.gguf", seed=4, template=None)
    made["spm"] = tiny_gguf(folder / "spm.gguf", seed=5, flavour="spm")
    made["nan"] = tiny_gguf(folder / "nan.gguf", seed=6, nan=True)
    made["lora"] = tiny_adapter(folder / "lora.gguf", seed=7)
    for path in made.values():
        path.chmod(0o644)
    return made


@pytest.fixture
def examined() -> None:
    """Each file is looked at in a process of its own, as it is in earnest; takes seconds."""


@pytest.fixture
def create(
    run: Run, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Create:  # fmt: skip
    """Makes the bundle `mine`; keywords name other files for some roles, "" none."""
    monkeypatch.setenv("CAPT_LOCAL_THREADS", "1")
    if "examined" not in request.fixturenames:
        monkeypatch.setattr(models_create, "examine", lambda *_: None)

    def call(*more: str, **other: object) -> Result:
        given = {role: models[role] for role in ROLES} | other
        flags = [part for role, path in given.items() if path for part in (f"--{role}", str(path))]
        return run("models", "create", "mine", *flags, "--licence", "CC0-1.0", *more)

    return call


def refused(result: Result, *says: str) -> None:
    """Nothing is there, and exit code 3."""
    assert result.code == 3 and all(each in result.err for each in says), result
    incoming = store.user_folder().parent / "incoming"
    left = [each for each in incoming.iterdir() if each.is_dir()] if incoming.exists() else []
    assert not (store.user_folder() / "mine").exists() and not left


def test_a_bundle_that_can_be_used(examined: None, create: Create, run: Run) -> None:
    result = create("--version", "1.2")
    assert result.code == 0, result.err
    assert "base.gguf, expert.gguf, target.gguf share their bytes" in result.err
    bundle = store.find("mine")
    assert (bundle.version, bundle.requires, bundle.licence) == ("1.2", __version__, "CC0-1.0")
    for model in bundle.models.values():
        assert model.sha256 and model.tokenizer_sha256 and model.template_sha256
        assert model.licence == "CC0-1.0"
    assert run("models", "verify", "mine").code == 0
    assert run("generate", "-m", "mine", "-p", "The patient", "-n", "2").code == 0


def test_a_model_without_a_template_and_an_adapter(create: Create, models: dict[str, Path]) -> None:
    assert create(base=models["bare"]).code == 0
    styles = {role: model.style for role, model in store.find("mine").models.items()}
    assert styles == {"target": Style.CHAT, "expert": Style.CHAT, "base": Style.RAW}
    result = create("--expert-adapter", f"{models['lora']}=0.5", "--replace", expert="")
    assert result.code == 0, result.err
    expert = store.find("mine").models["expert"]
    (adapter,) = expert.adapters
    assert (adapter.scale, adapter.licence) == (0.5, "CC0-1.0")
    assert expert.path.name == "base.gguf"


def test_models_that_do_not_fit(create: Create, models: dict[str, Path], tmp_path: Path) -> None:
    twin = tmp_path / "twin.gguf"  # the same bytes under another name
    shutil.copy(models["expert"], twin)
    for base in (models["expert"], twin):
        refused(create(base=base), "The expert and its base are the same model")
    refused(create(base=models["spm"]), "The expert and its base have different vocabularies")
    result = create("--allow-misfit", base=models["spm"])
    assert result.code == 0 and "differ in their vocabulary" in result.err


@pytest.mark.parametrize("role", ROLES)
def test_what_is_no_model(
    role: str, create: Create, models: dict[str, Path], tmp_path: Path
) -> None:
    odd = tmp_path / "\x1b[2Jodd.gguf"
    odd.write_bytes(b"no model")
    result = create(**{role: odd})
    refused(result, f"The {role}:", "not a GGUF")
    assert result.err.count("\n") == 1 and "\x1b" not in result.err
    data = models[role].read_bytes()
    odd.write_bytes(data[: len(data) // 2])
    refused(create(**{role: odd}), f"The {role}:", "cut off")
    none = create(**{role: tmp_path / "none.gguf"})
    refused(none, f"The {role} model none.gguf is not there")


def test_what_is_there_is_kept_unless_told(
    examined: None, create: Create, run: Run, models: dict[str, Path]
) -> None:
    refused(create(expert=models["nan"]), "expert.gguf is damaged")
    assert create().code == 0
    before = (store.user_folder() / "mine" / MANIFEST).read_bytes()
    result = create("--version", "2")
    assert (result.code, "A bundle is there already" in result.err) == (3, True)
    assert create("--version", "2", "--replace", base=models["nan"]).code == 3
    assert (store.user_folder() / "mine" / MANIFEST).read_bytes() == before
    assert run("models", "verify", "mine").code == 0
    assert create("--version", "2", "--replace").code == 0
    assert store.find("mine").version == "2"


@pytest.mark.parametrize("name", ["../up", "a b", "", "\u00e4", "con", "demo", "-x", "x" * 65])
def test_names_that_do_not_go(name: str, run: Run, models: dict[str, Path]) -> None:
    flags = [part for role in ROLES for part in (f"--{role}", str(models[role]))]
    result = run("models", "create", *flags, "--licence", "x", "--", name)
    assert (result.code in (2, 3), result.out, result.err.count("\n")) == (True, "", 1)
    assert not store.user_folder().exists() or not os.listdir(store.user_folder())


def test_what_a_file_says_of_its_licence(
    create: Create, run: Run, models: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def speak(writer: gguf.GGUFWriter, _: str) -> None:
        writer.add_string("general.license", "mit")
        writer.add_string("general.repo_url", "from\x1b[2J \n a  friend" + "x" * 500)

    monkeypatch.setattr(gguf.GGUFWriter, "add_name", speak)
    spoken = tiny_gguf(tmp_path / "spoken.gguf", seed=1)
    flags = ("--target", str(models["target"]), "--base", str(models["base"]))
    result = run("models", "create", "mine", *flags, "--expert", str(spoken))
    assert result.code == 2 and "The licence of the target is not known" in result.err
    assert not store.user_folder().exists() or not os.listdir(store.user_folder())
    result = create(expert=spoken)
    assert result.code == 0, result.err
    bundle = store.find("mine")
    assert (bundle.models["expert"].licence, bundle.licence) == ("mit", "CC0-1.0; mit")
    source = bundle.models["expert"].source
    assert source.startswith("from [2J a friendxx") and len(source) < 300


def test_a_bundle_that_was_made_travels(
    create: Create, run: Run, models: dict[str, Path], tmp_path: Path
) -> None:
    assert create().code == 0
    archive = str(tmp_path / "mine.capt")
    assert run("models", "export", "mine", "-o", archive, "--unsigned").code == 0
    before = read_bundle(store.user_folder() / "mine")
    assert run("models", "remove", "mine", "--yes").code == 0
    assert all(path.exists() for path in models.values())
    result = run("models", "import", archive, "--allow-unsigned")
    assert result.code == 0, result.err
    assert store.find("mine") == before
