"""Runs command lines inside the test, with a fake runtime."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from capt_local.cli import app
from tests.cli.fake_runtime import Script, install, model_flags


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
