"""`models create` with files that llama.cpp really loads and runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import gguf
import pytest

from capt_local.bundles import store
from capt_local.bundles.manifest import MANIFEST, Style, read_bundle
from capt_local.cli import models_create as creating
from capt_local.version import __version__
from tests.cli.conftest import Result, Run
from tests.tiny_models import tiny_adapter, tiny_gguf


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {
        role: tiny_gguf(folder / f"{role}.gguf", seed=seed)
        for seed, role in enumerate(("target", "expert", "base"))
    }
    made["bare"] = tiny_gguf(folder / "bare.gguf", seed=4, template=None)
    made["spm"] = tiny_gguf(folder / "spm.gguf", seed=5, flavour="spm")
    made["nan"] = tiny_gguf(folder / "nan.gguf", seed=6, nan=True)
    made["lora"] = tiny_adapter(folder / "lora.gguf", seed=7)
    for path in made.values():
        path.chmod(0o644)
    return made


@pytest.fixture
def examined() -> None:
    """Each file is looked at in a process of its own, as it is in earnest."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """One thread, and no process for each file, which takes seconds."""
    monkeypatch.setenv("CAPT_LOCAL_THREADS", "1")
    if "examined" not in request.fixturenames:
        monkeypatch.setattr(creating, "examine", lambda *_: None)


def create(run: Run, models: dict[str, Path], *more: str, **other: str) -> Result:
    given = {role: str(models[role]) for role in ("target", "expert", "base")} | other
    flags = [part for role, path in given.items() for part in (f"--{role}", path) if path]
    licence = [] if "--licence" in more else ["--licence", "CC0-1.0"]
    return run("models", "create", "mine", *flags, *licence, *more)


def nothing_is_there() -> bool:
    incoming = store.user_folder().parent / "incoming"
    left = [each for each in incoming.iterdir() if each.is_dir()] if incoming.exists() else []
    return not (store.user_folder() / "mine").exists() and not left


def test_a_bundle_that_can_be_used(examined: None, run: Run, models: dict[str, Path]) -> None:
    result = create(run, models, "--version", "1.2")
    assert result.code == 0, result.err
    assert "base.gguf, expert.gguf, target.gguf share their bytes" in result.err
    bundle = store.find("mine")
    assert (bundle.version, bundle.requires, bundle.licence) == ("1.2", __version__, "CC0-1.0")
    for model in bundle.models.values():
        assert model.sha256 and model.tokenizer_sha256 and model.template_sha256
        assert model.licence == "CC0-1.0"
    assert run("models", "verify", "mine").code == 0
    assert run("generate", "-m", "mine", "-p", "The patient", "-n", "2").code == 0


def test_a_model_without_a_chat_template_is_raw(run: Run, models: dict[str, Path]) -> None:
    assert create(run, models, base=str(models["bare"])).code == 0
    styles = {role: model.style for role, model in store.find("mine").models.items()}
    assert styles == {"target": Style.CHAT, "expert": Style.CHAT, "base": Style.RAW}


def test_an_adapter(run: Run, models: dict[str, Path]) -> None:
    flags = ["--expert-adapter", f"{models['lora']}=0.5"]
    result = create(run, models, *flags, expert="")
    assert result.code == 0, result.err
    expert = store.find("mine").models["expert"]
    assert [one.scale for one in expert.adapters] == [0.5]
    assert expert.adapters[0].licence == "CC0-1.0"
    assert expert.path.name == "base.gguf"


def test_the_same_file_twice(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    result = create(run, models, base=str(models["expert"]))
    assert (result.code, nothing_is_there()) == (3, True)
    assert "The expert and its base are the same model" in result.err
    twin = tmp_path / "twin.gguf"  # the same bytes under another name
    shutil.copy(models["expert"], twin)
    result = create(run, models, base=str(twin))
    assert (result.code, nothing_is_there()) == (3, True)
    assert "The expert and its base are the same model" in result.err


def test_a_base_of_another_vocabulary(run: Run, models: dict[str, Path]) -> None:
    flags = dict(base=str(models["spm"]))
    result = create(run, models, **flags)
    assert (result.code, nothing_is_there()) == (3, True)
    assert "The expert and its base have different vocabularies" in result.err
    result = create(run, models, "--allow-misfit", **flags)
    assert result.code == 0
    assert "differ in their vocabulary" in result.err


@pytest.mark.parametrize("role", ["target", "expert", "base"])
def test_what_is_no_model(role: str, run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    odd = tmp_path / "\x1b[2Jodd.gguf"
    odd.write_bytes(b"no model")
    result = create(run, models, **{role: str(odd)})
    assert (result.code, result.err.count("\n"), nothing_is_there()) == (3, 1, True)
    assert f"The {role}:" in result.err and "not a GGUF" in result.err and "\x1b" not in result.err
    data = models[role].read_bytes()
    odd.write_bytes(data[: len(data) // 2])
    result = create(run, models, **{role: str(odd)})
    assert (result.code, f"The {role}:" in result.err, "cut off" in result.err) == (3, True, True)
    result = create(run, models, **{role: str(tmp_path / "none.gguf")})
    assert (result.code, f"The {role} model none.gguf is not there" in result.err) == (3, True)


def test_a_weight_that_is_no_number(examined: None, run: Run, models: dict[str, Path]) -> None:
    result = create(run, models, expert=str(models["nan"]))
    assert (result.code, nothing_is_there()) == (3, True)
    assert "expert.gguf is damaged" in result.err


def test_what_is_there_is_kept_unless_told(run: Run, models: dict[str, Path]) -> None:
    assert create(run, models).code == 0
    before = (store.user_folder() / "mine" / MANIFEST).read_bytes()
    result = create(run, models, "--version", "2")
    assert (result.code, "A bundle is there already" in result.err) == (3, True)
    assert (store.user_folder() / "mine" / MANIFEST).read_bytes() == before
    assert create(run, models, "--version", "2", "--replace").code == 0
    assert store.find("mine").version == "2"


def test_a_replacement_that_fails_leaves_what_was_there(
    examined: None, run: Run, models: dict[str, Path]
) -> None:
    assert create(run, models).code == 0
    assert create(run, models, "--replace", base=str(models["nan"])).code == 3
    assert store.find("mine").version == "1" and run("models", "verify", "mine").code == 0


@pytest.mark.parametrize("name", ["../up", "a b", "", "\u00e4", "con", "demo", "-x", "x" * 65])
def test_names_that_do_not_go(name: str, run: Run, models: dict[str, Path]) -> None:
    flags = [p for r in ("target", "expert", "base") for p in (f"--{r}", str(models[r]))]
    result = run("models", "create", *flags, "--licence", "x", "--", name)
    assert (result.code in (2, 3), result.out, result.err.count("\n")) == (True, "", 1)
    assert not store.user_folder().exists() or not os.listdir(store.user_folder())


def test_what_a_file_says_of_its_licence(
    run: Run, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def speak(writer: gguf.GGUFWriter, _: str) -> None:
        writer.add_string("general.license", "mit")
        writer.add_string("general.repo_url", "from\x1b[2J \n a  friend" + "x" * 500)

    monkeypatch.setattr(gguf.GGUFWriter, "add_name", speak)
    spoken = tiny_gguf(tmp_path / "spoken.gguf", seed=1)
    flags = [p for role in ("target", "base") for p in (f"--{role}", str(models[role]))]
    result = run("models", "create", "mine", *flags, "--expert", str(spoken))
    assert (result.code, nothing_is_there()) == (2, True)
    assert "The licence of the target is not known" in result.err
    result = create(run, models, expert=str(spoken))
    assert result.code == 0, result.err
    bundle = store.find("mine")
    assert (bundle.models["expert"].licence, bundle.licence) == ("mit", "CC0-1.0; mit")
    source = bundle.models["expert"].source
    assert source.startswith("from [2J a friendxx") and len(source) < 300


def test_a_bundle_that_was_made_travels(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    assert create(run, models).code == 0
    archive = str(tmp_path / "mine.capt")
    assert run("models", "export", "mine", "-o", archive, "--unsigned").code == 0
    before = read_bundle(store.user_folder() / "mine")
    assert run("models", "remove", "mine", "--yes").code == 0
    assert all(path.exists() for path in models.values())
    result = run("models", "import", archive, "--allow-unsigned")
    assert result.code == 0, result.err
    assert store.find("mine") == before
