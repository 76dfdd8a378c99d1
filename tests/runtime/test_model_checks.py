"""Files that no trusted manifest names are loaded elsewhere first, on every way to llama.cpp."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from capt_local.bundles import store, verify
from capt_local.bundles.install import write_manifest
from capt_local.bundles.manifest import Bundle, Signer, read_bundle
from capt_local.bundles.verify import Check
from capt_local.cli import app
from capt_local.cli.models import examine as examine_bundle
from capt_local.errors import Cancelled, ModelError
from capt_local.llama import probe as probe_module
from capt_local.llama.options import LoadOptions
from capt_local.llama.weights import Weights
from capt_local.model_checks import is_trusted, probe_untrusted
from capt_local.report.terminal import Screen
from capt_local.runtime import Runtime
from tests.bundle_files import describe
from tests.tiny_models import tiny_adapter, tiny_gguf

LOAD = LoadOptions(threads=1, context=256)
ABORT = "import os; input(); os.abort()"


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were written just now are remembered too."""
    monkeypatch.setattr(verify, "_SETTLED", 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that nobody else may write."""
    (tmp_path / "models").mkdir(mode=0o755)
    return tmp_path / "models"


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The files that were looked at, in order; nothing really is."""
    found: list[list[str]] = []

    def look(path: Path, adapters: Sequence[Path] = (), *_more: object) -> dict[Path, str]:
        found.append([path.name, *(each.name for each in adapters)])
        return {}

    monkeypatch.setattr(probe_module, "probe_files", look)
    return found


def trio(folder: Path) -> Bundle:
    files = [tiny_gguf(folder / f"{name}.gguf", seed=1) for name in ("target", "expert", "base")]
    for file in files:
        file.chmod(0o644)
    return Bundle.from_paths(*files)


def with_manifest(folder: Path) -> Bundle:
    file = tiny_gguf(folder / "target.gguf", seed=1)
    file.chmod(0o644)
    return read_bundle(write_manifest(Bundle("one", {"target": describe("target", file)}), folder))


def test_each_file_is_looked_at_once(folder: Path, looked: list[list[str]]) -> None:
    bundle = trio(folder)
    stamps = probe_untrusted(bundle)
    assert looked == [["target.gguf"], ["expert.gguf"], ["base.gguf"]]
    assert set(stamps) == {model.path for model in bundle.models.values()}
    probe_untrusted(bundle)
    assert len(looked) == 3
    probe_untrusted(bundle, check=Check.ALWAYS)
    assert len(looked) == 6
    probe_untrusted(bundle, check=Check.NEVER)
    assert len(looked) == 6


def test_a_file_that_was_changed_is_looked_at_again(folder: Path, looked: list[list[str]]) -> None:
    bundle = trio(folder)
    probe_untrusted(bundle)
    path = bundle.models["expert"].path
    before = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    probe_untrusted(bundle)
    assert looked[3:] == [["expert.gguf"]]


def test_a_file_that_others_may_write_is_looked_at_each_time(
    folder: Path, looked: list[list[str]]
) -> None:
    bundle = trio(folder)
    bundle.models["base"].path.chmod(0o666)
    probe_untrusted(bundle)
    probe_untrusted(bundle)
    assert looked[3:] == [["base.gguf"]]


def test_what_was_found_bad_is_not_remembered(folder: Path) -> None:
    bundle = Bundle.from_paths(tiny_gguf(folder / "target.gguf", seed=1, nan=True))
    for _ in range(2):
        with pytest.raises(ModelError, match=r"target\.gguf"):
            probe_untrusted(bundle)


def test_a_shared_file_and_its_adapter_are_one_look(folder: Path, looked: list[list[str]]) -> None:
    files = [tiny_gguf(folder / f"{name}.gguf", seed=1) for name in ("target", "base")]
    adapter = tiny_adapter(folder / "lora.gguf", seed=2)
    for path in (*files, adapter):
        path.chmod(0o644)
    bundle = Bundle.from_paths(files[0], None, files[1], str(adapter))
    for _ in range(2):
        assert adapter in probe_untrusted(bundle)
    assert looked == [["target.gguf"], ["base.gguf", "lora.gguf"]]
    other = tiny_adapter(folder / "other.gguf", seed=3)
    probe_untrusted(Bundle.from_paths(files[0], None, files[1], str(other)))
    assert looked[2:] == [["base.gguf", "other.gguf"]]


def test_whose_files_are_looked_at(folder: Path, tmp_path: Path) -> None:
    loose, opened = trio(folder), with_manifest(folder)
    assert not is_trusted(loose) and not is_trusted(opened)
    assert is_trusted(dataclasses.replace(opened, signer=Signer("ab", "hospital")))
    assert is_trusted(store.find("demo"))
    own = store.user_folder() / "one"
    own.parent.mkdir(parents=True)
    shutil.copytree(folder, own)
    assert not is_trusted(read_bundle(own))  # anybody's copy
    above = tmp_path / "elsewhere" / "one"
    shutil.copytree(folder, above)
    assert not is_trusted(read_bundle(above))


def test_what_was_looked_at_before_it_took_its_place_is_remembered(
    folder: Path, looked: list[list[str]]
) -> None:
    bundle, own = with_manifest(folder), store.user_folder() / "one"
    examine_bundle(bundle, Screen.standard())
    own.parent.mkdir(parents=True)
    os.rename(folder, own)
    with Runtime.open("one", load=LOAD):
        assert looked == [["target.gguf"]]
    (own / "target.gguf").write_bytes((own / "target.gguf").read_bytes())
    with Runtime.open("one", load=LOAD):
        assert len(looked) == 2


def test_ctrl_c_stops_the_look(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "_PROGRAM", "import time; time.sleep(60)")

    def progress(role: str, share: float) -> None:
        raise Cancelled(f"{role} {share}")

    started = time.monotonic()
    with pytest.raises(Cancelled, match=r"target 0\.0"):
        Runtime.open(trio(folder), load=LOAD, progress=progress)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "verb",
    [["generate", "-p", "x", "--method", "target", "-m"], ["models", "show"], ["doctor", "-m"]],
    ids=lambda verb: verb[0],
)
def test_a_swap_between_look_and_load_is_found(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: list[str],
) -> None:
    with_manifest(folder)
    other = tiny_gguf(folder / "other", seed=2)
    monkeypatch.setattr(
        probe_module, "probe_files", lambda path, *_more: os.replace(other, path) or {}
    )
    assert int(app.run([*verb, str(folder)])) == 3
    assert "changed between its check and its loading" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "verb",
    [["generate", "-p", "x"], ["chat"], ["bench"], ["models", "show"], ["doctor", "-m"]],
    ids=lambda verb: verb[0],
)
def test_a_hostile_file_never_reaches_llama_cpp_here(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: list[str],
) -> None:
    """Given by its path, or in a bundle that nobody vouches for."""
    monkeypatch.setattr(probe_module, "_PROGRAM", ABORT)
    monkeypatch.setattr(Weights, "_load", lambda *_: pytest.fail("llama.cpp was asked"))
    # As in a terminal, which chat needs.
    terminal = SimpleNamespace(buffer=SimpleNamespace(isatty=lambda: True), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(Screen, "on_terminal", True)
    if verb[-1] in ("show", "-m"):
        with_manifest(folder)
        flags = [str(folder)]
    else:
        flags = [f"--{role}={model.path}" for role, model in trio(folder).models.items()]
    assert int(app.run([*verb, *flags])) == 3
    told = "target.gguf ended the process that looked at it (code -6)"
    assert told in "".join(capsys.readouterr())
