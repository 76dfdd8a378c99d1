"""Runs command lines inside the test, with a fake runtime; files of settings, small bundles."""

from __future__ import annotations

import io
import os
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from capt_local import config as site_config
from capt_local.bundles.install import write_manifest
from capt_local.bundles.manifest import Bundle
from capt_local.cli import app
from tests.bundle_files import describe
from tests.cli.fake_runtime import Script, install, model_flags
from tests.tiny_models import tiny_gguf

CANARY = "zyzzyva-canary"


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str


class Stdin(io.BytesIO):
    """Standard input that is a terminal or a pipe."""

    def __init__(self, data: bytes = b"", *, terminal: bool = False) -> None:
        super().__init__(data)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def read(self, size: int | None = -1) -> bytes:
        assert not self._terminal, "the command waited for input from a terminal"
        return super().read(size)


Run = Callable[..., Result]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """What the fake runtime is to do; tests change it before they run a command."""
    made = Script()
    install(monkeypatch, made)
    return made


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `capt-local` with arguments; `{models}` stands for three model files."""
    models = model_flags(tmp_path)

    def call(*arguments: str, stdin: Stdin | None = None) -> Result:
        given: Sequence[str] = [
            part for arg in arguments for part in (models if arg == "{models}" else [arg])
        ]
        source = stdin if stdin is not None else Stdin(terminal=True)
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=source))
        capsys.readouterr()
        code = app.run(list(given))
        captured = capsys.readouterr()
        return Result(int(code), captured.out, captured.err)

    return call


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The site's file, that this account may write as if it were root."""
    check, path = site_config._check_owner, site_config.site_file()
    path.parent.mkdir(0o755, parents=True)

    def own(path: Path, about: os.stat_result, owner: int, others: int) -> None:
        check(path, about, os.getuid(), others)

    monkeypatch.setattr(site_config, "_check_owner", own)
    return path


@pytest.fixture
def user() -> Path:
    """The user's file, which is not there yet."""
    path = site_config.user_file()
    path.parent.mkdir(parents=True)
    return path


def one_model(folder: Path, id: str = "tiny", **about: Any) -> Path:
    """A bundle of one model; `about` is for `tiny_gguf`."""
    folder.mkdir(parents=True)
    models = {"target": describe("target", tiny_gguf(folder / "target.gguf", seed=1, **about))}
    write_manifest(Bundle(id=id, models=models, version="1"), folder)
    return folder
