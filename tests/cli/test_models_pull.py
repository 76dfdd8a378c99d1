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
from capt_local.bundles import hub, store
from capt_local.cli.models import pull as verb
from tests.bundles.mirror import Handler, Mirror, Repository, running, sha256, status
from tests.bundles.pulls import COMMITS, SIZES, name, write_recipe
from tests.cli.conftest import Run
from tests.tiny_models import tiny_gguf

ACCEPT = ("--accept-licence", "apache-2.0")


@pytest.fixture(autouse=True)
def no_network() -> None:
    """This machine may be asked; that nobody else is, the guard in the interpreter sees to."""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    monkeypatch.setattr(hub, "_CHUNK", 1000)
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("models")
    return {
        role: tiny_gguf(folder / f"{role}.gguf", seed=seed).read_bytes()
        for seed, role in enumerate(SIZES)
    }


@pytest.fixture
def mirror(models: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    with running() as found:
        for role, data in models.items():
            repository = Repository({f"{role}.Q4_K_M.gguf": data}, COMMITS[role])
            found.repositories[name(role)] = repository
        monkeypatch.setenv("CAPT_LOCAL_MIRROR", found.url)
        yield found


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return str(write_recipe(tmp_path / "trio.toml"))


def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> Path:
    """A site's file that counts as root's."""
    file = tmp_path / "site.toml"
    file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(site_config, "site_file", lambda: file)
    monkeypatch.setattr(site_config, "_check_owner", lambda *_: None)
    return file


def test_a_bundle_from_a_hub(run: Run, mirror: Mirror, recipe: str) -> None:
    result = run("models", "pull", recipe, *ACCEPT)
    assert result.code == 0, result.err
    assert result.err.count("FIRST USE") == 3
    assert "trio 1 is installed" in result.out and COMMITS["base"] in result.out
    assert "not the right one" not in result.err
    assert run("models", "verify", "trio").code == 0
    shown = json.loads(run("models", "show", "trio", "--json").out)
    assert shown["fit"]["expert"]["same_vocabulary"] is True
    asked = len(mirror.fetches())
    again = run("models", "pull", recipe, *ACCEPT)
    assert (again.code, len(mirror.fetches())) == (0, asked)
    assert "was installed already, and is whole" in again.out


def test_nothing_is_fetched_before_each_licence_is_accepted(
    run: Run, mirror: Mirror, tmp_path: Path
) -> None:
    mirror.repositories[name("base")].licence = "Llama3"
    recipe = str(write_recipe(tmp_path / "r.toml"))
    result = run("models", "pull", recipe, *ACCEPT)
    assert (result.code, result.out) == (3, "")
    assert "licence llama3 (base: base of a maker, from maker/base-GGUF)" in result.err
    assert "accept what you have read with --accept-licence llama3." in result.err
    assert mirror.fetches() == [] and not store.user_folder().exists()
    assert run("models", "pull", recipe, *ACCEPT, "--accept-licence", "LLAMA3").code == 0
    assert store.find("trio").models["base"].licence == "apache-2.0 and llama3"


@pytest.mark.parametrize("way", ["flag", "twin", "file"])
def test_offline(
    run: Run, mirror: Mirror, recipe: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--offline"] if way == "flag" else []
    if way == "twin":
        monkeypatch.setenv("CAPT_LOCAL_OFFLINE", "1")
    if way == "file":
        site_config.user_file().parent.mkdir(parents=True)
        site_config.user_file().write_text("[options]\noffline = true\n")
    result = run("models", "pull", recipe, *ACCEPT, *flags)
    assert (result.code, result.out, mirror.seen) == (2, "", [])
    assert "--offline (or its twin) forbids" in result.err


def test_the_librarys_own_switch_counts_too(
    run: Run, mirror: Mirror, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = run("models", "pull", recipe, *ACCEPT)
    assert (result.code, mirror.seen) == (2, []) and "HF_HUB_OFFLINE" in result.err


@pytest.mark.parametrize(
    ("limit", "named"),
    [
        ("pull = false", "pull"),
        ('forbid = ["network"]', "network"),
        ("unsigned-bundles = false", "unsigned-bundles"),
    ],
)
def test_a_site_forbids_it(
    run: Run,
    mirror: Mirror,
    recipe: str,
    limit: str,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    file = site(monkeypatch, tmp_path, f"[limits]\n{limit}\n")
    result = run("models", "pull", recipe, *ACCEPT)
    assert (result.code, result.out, mirror.seen) == (2, "", [])
    assert f"{file} forbids {named}" in result.err


def test_without_the_extra_it_says_what_to_install(
    run: Run, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    result = run("models", "pull", recipe, *ACCEPT)
    assert (result.code, result.out) == (2, "")
    assert "pip install 'capt-local[pull]'" in result.err
    listed = run("models", "pull")
    assert listed.code == 0 and "llama3-med" in listed.out and "by hand" in listed.out


def test_tokens_come_from_the_environment_alone(
    run: Run, mirror: Mirror, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_theirs")
    run("models", "pull", recipe, "--dry-run")
    monkeypatch.setenv(verb.TOKEN, "hf_ours")
    run("models", "pull", recipe, "--dry-run")
    run("models", "pull", recipe, "--dry-run", "--hf-token")
    sent = [seen.headers.get("authorization") for seen in mirror.seen[::3]]
    assert sent == [None, "Bearer hf_ours", "Bearer hf_theirs"]
    mirror.order("/api/", status(401))
    refused = run("models", "pull", recipe, *ACCEPT, "-v")
    assert refused.code == 3 and "hf_" not in refused.err + refused.out
    monkeypatch.delenv("HF_TOKEN")
    result = run("models", "pull", recipe, "--hf-token")
    assert result.code == 2 and "HF_TOKEN is not in the environment" in result.err
    listed = run("config", "show", "--json").out
    assert "hf_ours" not in listed and json.loads(listed)["unknown_variables"] == []


def test_a_weight_that_is_no_number_is_found(
    run: Run, mirror: Mirror, recipe: str, tmp_path: Path
) -> None:
    bad = tiny_gguf(tmp_path / "nan.gguf", seed=9, nan=True).read_bytes()
    mirror.repositories[name("base")].files["base.Q4_K_M.gguf"] = bad
    result = run("models", "pull", recipe, *ACCEPT)
    assert (result.code, "base.gguf" in result.err) == (3, True)
    assert not (store.user_folder() / "trio").exists()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_ended_goes_on(
    run: Run, mirror: Mirror, recipe: str, models: dict[str, bytes], end: signal.Signals
) -> None:
    """And with bytes of the file in the store no library has put anything elsewhere."""
    waiting: list[bool] = []

    def stop_in_the_middle(handler: Handler) -> None:
        data = models["target"]
        handler.head(200, {"Content-Length": str(len(data))})
        handler.wfile.write(data[:400_000])
        handler.wfile.flush()
        waiting.append(True)
        time.sleep(5)
        handler.cut()

    mirror.order("/resolve/", stop_in_the_middle)
    home = Path(os.environ["XDG_DATA_HOME"]).parent / "other"
    home.mkdir()
    command = [sys.executable, "-m", "capt_local", "models", "pull", recipe, *ACCEPT]
    process = subprocess.Popen(
        command,
        # The tests of lm_eval have switched downloads off for all that is started here.
        env={**os.environ, "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "0"},
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    part = store.user_folder().parent / "incoming" / "trio" / "target.gguf"
    limit = time.monotonic() + 60
    while not (waiting and part.exists() and part.stat().st_size) and time.monotonic() < limit:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(end)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130 if end is signal.SIGINT else -end, "")
    assert "Traceback" not in err
    assert ("give the same command again to go on" in err) is (end is signal.SIGINT)
    there = part.stat().st_size
    assert 0 < there <= 400_000
    assert list(home.rglob("*")) == []
    result = run("models", "pull", recipe, *ACCEPT)
    assert result.code == 0, result.err
    assert [seen.range for seen in mirror.fetches()][1] == f"bytes={there}-"
    assert sha256((store.user_folder() / "trio" / "target.gguf").read_bytes()) == sha256(
        models["target"]
    )
