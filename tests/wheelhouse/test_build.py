"""What the script that makes a stick refuses, and what it leaves alone; nothing is built."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from capt_local.bundles.sign import new_key
from scripts.wheelhouse import __main__ as script
from scripts.wheelhouse.__main__ import Order
from scripts.wheelhouse.wheels import NotBuilt, call
from tests.bundles.travelling import make_bundle
from tests.children import socket_guard


class Compiled(Exception):
    """So far nothing was wrong."""


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle beside a key, and all that capt-local needs is there without pip."""

    def no_pip(*arguments: str, **_: str) -> None:
        assert arguments[0] == "install" and not any("llama" in each for each in arguments)

    def compile_it(*_: object) -> Path:
        raise Compiled

    def guarded(command: Sequence[str], PYTHONPATH: str) -> str:
        path = f"{Path(socket_guard.__file__).parent}{os.pathsep}{PYTHONPATH}"
        return call(command, PYTHONPATH=path)

    monkeypatch.setattr(script, "pip", no_pip)
    monkeypatch.setattr(script, "call", guarded)
    monkeypatch.setattr(script, "binding_wheel", compile_it)
    new_key(tmp_path / "maker")
    make_bundle(tmp_path / "trio")
    return tmp_path / "trio"


def build(place: Path, *more: str) -> None:
    keys = [] if more else ["--new-key", str(place.parent / "maker.key")]
    script.run(script.arguments(["-o", str(place), *keys, *more]))


def test_what_others_have_left_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(_: Order, stick: Path, scratch: Path) -> str:
        assert stick.is_dir() and scratch.is_dir()
        (stick / "install.sh").write_text("")
        return "f" * 64

    monkeypatch.setattr(script, "make", make)
    others = tmp_path / "stick.part" / "thesis.txt"
    others.parent.mkdir()
    others.write_text("mine")
    build(tmp_path / "stick")
    assert others.read_text() == "mine"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["stick", "stick.part"]
    umask = (tmp_path / "stick.part").stat().st_mode  # others have to read the stick, too
    assert (tmp_path / "stick").stat().st_mode == umask


def test_nothing_is_left_of_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Order, stick: Path, __: Path) -> str:
        (stick / "install.sh").write_text("")
        raise NotBuilt("no compiler")

    monkeypatch.setattr(script, "make", fail)
    with pytest.raises(NotBuilt, match="no compiler"):
        build(tmp_path / "stick")
    assert not list(tmp_path.iterdir())


def refused(bundle: Path, *more: str, reference: str = "") -> str:
    """Why nothing is built; nothing is left of it."""
    before = sorted(bundle.parent.rglob("*"))
    keys = [] if any("key" in each for each in more) else [f"--key={bundle.parent}/maker.key"]
    with pytest.raises(NotBuilt) as found:
        build(bundle.parent / "stick", "--bundle", reference or str(bundle), *keys, *more)
    assert sorted(bundle.parent.rglob("*")) == before
    return str(found.value)


def test_a_bundle_that_will_not_do_is_found_before_the_build(bundle: Path) -> None:
    assert refused(bundle, reference="nowhere").startswith("No bundle has the id 'nowhere'")
    (bundle / "base.gguf").write_bytes(b"x" * (bundle / "base.gguf").stat().st_size)
    assert "SHA-256 differs" in refused(bundle)
    (bundle / "base.gguf").unlink()
    assert "base" in refused(bundle)


def test_a_key_that_will_not_do_is_found_before_the_build(bundle: Path) -> None:
    key = bundle.parent / "maker.key"
    data = key.read_bytes()
    key.chmod(0o644)
    assert refused(bundle).startswith("Others may read maker.key")
    key.chmod(0o600)
    key.write_bytes(data.replace(b"PRIVATE", b"PUBLIC"))
    assert "holds no private Ed25519 key" in refused(bundle)
    key.unlink()
    assert refused(bundle).startswith(f"There is no key at {key}")
