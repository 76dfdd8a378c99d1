"""`models pull` from a hub on this machine, with files that llama.cpp really loads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capt_local import config as site_config
from capt_local.bundles import store
from tests.bundles.hub_server import COMMITS, ROLES, HubServer, running, write_recipe
from tests.cli.conftest import Run
from tests.tiny_models import tiny_gguf

ACCEPT = ("--accept-licence", "apache-2.0")


@pytest.fixture(autouse=True)
def no_network() -> None:
    """This machine may be asked; that nobody else is, the guard in the interpreter sees to."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("models")
    return {
        role: tiny_gguf(folder / f"{role}.gguf", seed=seed).read_bytes()
        for seed, role in enumerate(ROLES)
    }


@pytest.fixture
def server(models: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running(dict(models), monkeypatch) as found:
        yield found


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return write_recipe(tmp_path / "trio.toml")


def test_a_bundle_from_a_hub(run: Run, server: HubServer, recipe: str) -> None:
    shown = run("models", "pull", recipe, "--dry-run")
    assert shown.code == 0 and COMMITS["base"] in shown.out and server.fetches() == []
    result = run("models", "pull", recipe, *ACCEPT)
    assert result.code == 0, result.err
    assert result.err.count("FIRST USE") == 3
    assert "trio 1 is installed" in result.out
    assert run("models", "verify", "trio").code == 0
    shown = json.loads(run("models", "show", "trio", "--json").out)
    assert shown["fit"]["expert"]["same_vocabulary"] is True
    assert sorted(os.listdir(store.staging_folder())) == ["trio.lock"]
    asked = len(server.seen)
    again = run("models", "pull", recipe, *ACCEPT)
    assert (again.code, len(server.seen)) == (3, asked) and "--replace" in again.err
    assert run("models", "pull", recipe, *ACCEPT, "--replace").code == 0


def test_nothing_is_downloaded_before_each_licence_is_accepted(
    run: Run, server: HubServer, recipe: str
) -> None:
    server.about["base"] = {"cardData": {"license": "Llama3"}}
    result = run("models", "pull", recipe, *ACCEPT)
    assert result.code == 3
    assert "accept what you have read with --accept-licence llama3." in result.err
    assert server.fetches() == [] and not store.user_folder().exists()
    assert run("models", "pull", recipe, *ACCEPT, "--accept-licence", "LLAMA3").code == 0
    assert store.find("trio").models["base"].licence == "apache-2.0 and llama3"


@pytest.mark.parametrize(
    ("limit", "named"),
    [
        ("pull = false", "pull"),
        ('forbid = ["network"]', "network"),
        ("unsigned-bundles = false", "unsigned-bundles"),
    ],
)
def test_a_site_forbids_it(
    run: Run, server: HubServer, recipe: str, limit: str, named: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(site_config, "_check_owner", lambda *_: None)
    file = site_config.site_file()
    file.parent.mkdir(parents=True)
    file.write_text(f"[limits]\n{limit}\n")
    result = run("models", "pull", recipe, *ACCEPT)
    assert (result.code, result.out, server.seen) == (2, "", [])
    assert f"{file} forbids {named}" in result.err


def test_without_the_extra_it_says_what_to_install(
    run: Run, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = run("models", "pull", recipe, *ACCEPT)
    assert (result.code, result.out) == (2, "")
    assert "pip install 'capt-local[pull]'" in result.err
    listed = run("models", "pull")
    assert listed.code == 0 and "llama3-med" in listed.out


def test_a_weight_that_is_no_number_is_found(
    run: Run, server: HubServer, recipe: str, tmp_path: Path
) -> None:
    server.files["base"] = tiny_gguf(tmp_path / "nan.gguf", seed=9, nan=True).read_bytes()
    result = run("models", "pull", recipe, *ACCEPT)
    assert (result.code, "base.gguf" in result.err) == (3, True)
    assert not (store.user_folder() / "trio").exists()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_ended_goes_on(
    run: Run, server: HubServer, recipe: str, tmp_path: Path, end: signal.Signals
) -> None:
    """And the library has put nothing elsewhere."""
    server.pause["target"] = 400_000
    home = tmp_path / "home"
    home.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "capt_local", "models", "pull", recipe, *ACCEPT],
        # The tests of lm_eval have switched downloads off for all that is started here.
        env={**os.environ, "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "0"},
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = time.monotonic() + 60
    while not server.fetches("target") and time.monotonic() < limit:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(end)
    _, err = process.communicate(timeout=30)
    assert process.returncode == (130 if end is signal.SIGINT else -end)
    assert "Traceback" not in err and list(home.rglob("*")) == []
    server.pause.clear()
    result = run("models", "pull", recipe, *ACCEPT)
    assert result.code == 0, result.err
    assert (store.user_folder() / "trio/target.gguf").read_bytes() == server.files["target"]
