"""Where bundles lie: folders that files name, a store on a stick, one that cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from capt_local import config as site_config
from capt_local.bundles import store
from capt_local.bundles.install import write_manifest
from capt_local.bundles.manifest import Bundle
from capt_local.config import MODELS_VARIABLE
from tests.bundle_files import describe
from tests.cli.conftest import Run
from tests.cli.fake_runtime import Script
from tests.tiny_models import tiny_gguf


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    models = {"target": describe("target", tiny_gguf(folder / "target.gguf", seed=1))}
    write_manifest(Bundle(id=folder.name, models=models, version="1"), folder)
    return folder


@pytest.fixture
def user() -> Path:
    path = site_config.user_file()
    path.parent.mkdir(parents=True)
    return path


def ids(run: Run) -> list[str]:
    return [each["id"] for each in json.loads(run("models", "list", "--json").out)["bundles"]]


def test_a_file_names_folders_with_bundles(
    run: Run, script: Script, user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "one" / "mine")
    make(tmp_path / "two" / "other")
    user.write_text(f"[options]\nmodels = ['{tmp_path}/one', '{tmp_path}/two']\n")
    assert ids(run) == ["demo", "mine", "other"]
    assert run("generate", "-m", "other", "-p", "x").code == 0
    assert script.calls[0]["bundle"].folder == tmp_path / "two" / "other"
    assert MODELS_VARIABLE not in os.environ
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "two"))  # which wins
    assert ids(run) == ["demo", "other"]
    assert os.environ[MODELS_VARIABLE] == str(tmp_path / "two")


def test_a_store_on_a_stick(
    run: Run, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sticks often give every file to everybody: it is used and read each time, and told."""
    folder = make(tmp_path / "stick" / "mine")
    for place in (folder, *folder.iterdir()):
        place.chmod(0o777)
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "stick"))
    assert run("generate", "-m", "mine", "-p", "x").code == 0
    found = json.loads(run("doctor", "-m", "mine", "--json").out)
    assert found["exit_code"] == 0
    assert found["files"]["writable by others"] == 3  # the folder, the model, the manifest
    assert run("models", "verify", "mine").code == 0


@pytest.fixture
def read_only(run: Run) -> Iterator[Path]:
    """The user's store with a bundle in it, on a disk that cannot be written any more."""
    place = store.user_folder().parent
    place.mkdir(parents=True)
    mounted = ["mount", "-t", "tmpfs", "-o", "size=9m,mode=700", "tmpfs", str(place)]
    try:
        done = subprocess.run(mounted, capture_output=True)
    except OSError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip("a disk can be mounted by root alone")
    try:
        make(store.user_folder() / "mine")
        left = store.staging_folder() / "left"
        left.mkdir(parents=True)
        (left / "target.gguf").write_bytes(b"x")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True, capture_output=True)
        yield store.user_folder()
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_store_that_cannot_be_written_serves_all_but_changes(
    read_only: Path, run: Run, script: Script, tmp_path: Path
) -> None:
    assert ids(run) == ["demo", "mine"]
    for verb in (
        ["models", "show", "mine"],
        ["models", "verify", "mine"],
        ["generate", "-m", "mine", "-p", "x"],
        ["doctor", "-m", "mine"],
        ["models", "export", "mine", "-o", str(tmp_path / "mine.capt"), "--unsigned"],
    ):
        result = run(*verb)
        assert result.code == 0, (verb, result)
    before = sorted(read_only.parent.rglob("*"))
    for verb in (
        ["models", "import", str(tmp_path / "mine.capt"), "--allow-unsigned"],
        ["models", "remove", "mine", "--yes"],
        ["models", "clean", "--yes"],
    ):
        result = run(*verb)
        assert (result.code, result.out, result.err.count("\n")) == (3, "", 1), (verb, result)
        assert "Read-only file system" in result.err
    assert sorted(read_only.parent.rglob("*")) == before
