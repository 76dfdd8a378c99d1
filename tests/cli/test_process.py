"""Whole processes with tiny real models: streams, pipes, terminals, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import CANARY
from tests.tiny_models import tiny_gguf


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags for three tiny models of two vocabularies."""
    folder = tmp_path_factory.mktemp("models")
    flags = ["-t", "1"]  # threads that wait for each other are slow on a busy machine
    for number, role in enumerate(("target", "expert", "base")):
        flavour = "bpe" if role == "target" else "spm"
        path = tiny_gguf(folder / f"{role}.gguf", seed=number, flavour=flavour, context=4096)
        flags += [f"--{role}", str(path)]
    return flags


def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """A command that runs, its output in pipes."""
    pipe = subprocess.PIPE
    options = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe, **options}
    return subprocess.Popen([sys.executable, "-m", "capt_local", *arguments], **options)


def done(*arguments: str, text: str = "", **options: Any) -> tuple[int, bytes, bytes]:
    """A command that has run to its end: exit code, output and errors."""
    options = {"stdin": subprocess.PIPE, **options}
    process = start(*arguments, **options)
    given = text.encode() if options["stdin"] == subprocess.PIPE else None
    out, err = process.communicate(given, timeout=120)
    return process.returncode, out, err


def test_what_a_run_leaves_behind(models: list[str], tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    for path in models[3::2]:  # behind -t 1
        os.utime(path)
    time.sleep(2.1)  # what was changed just now is not remembered
    env = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    given = [*models, "--raw", "-n", "4", "-p", f"{CANARY} fever"]
    for verb in (["generate", *given], ["generate", *given, "--json"]):
        assert done(*verb, cwd=work, env={**env, "HOME": str(home)})[0] == 0
    (left,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert left.name == "digests.json" and left.stat().st_mode & 0o777 == 0o600
    assert CANARY not in left.read_text()


def test_ctrl_c_stops_the_answer_and_keeps_what_is_there(models: list[str]) -> None:
    process = start("generate", *models, "--raw", "-p", "fever", "-n", "100000")
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and (first + out).endswith(b"\n")
    assert b"interrupted" in err and b"Traceback" not in err and b"ignored" not in err


def test_a_reader_that_leaves_is_no_drama(models: list[str]) -> None:
    process = start("generate", *models, "--raw", "-p", "fever", "-n", "4000")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 141  # as shells number the end by SIGPIPE
    assert b"Traceback" not in err and b"BrokenPipe" not in err and b"error" not in err


def test_text_on_standard_input_beside_a_file_is_noted(models: list[str], tmp_path: Path) -> None:
    (note := tmp_path / "note.txt").write_text("fever")
    arguments = ["generate", *models, "--raw", "-n", "4", "-f", str(note)]
    with open(note) as file:
        for given in ({"text": "cough"}, {"stdin": file}):
            code, _, err = done(*arguments, **given)
            assert code == 0 and b"standard input holds text, which is not read" in err
    assert b"not read" not in done(*arguments)[2]


def test_a_model_with_nan_weights_is_exit_3(tmp_path: Path) -> None:
    broken = tiny_gguf(tmp_path / "broken.gguf", seed=1, nan=True)
    code, out, err = done("generate", "--target", str(broken), "--raw", text=CANARY)
    assert (code, out, err.count(b"error: ")) == (3, b"", 1) and CANARY.encode() not in err


@pytest.mark.parametrize(
    ("streams", "arguments", "told"),
    [
        (">&-", "--version", "Standard output is closed"),
        (">&- 2>&-", "--version", ""),
        ("2>&-", "--version", None),  # a closed standard error is no matter
        (">/dev/full", "--help", "Standard output cannot be written: No space left"),
        (">/dev/full", "generate --help", "Standard output cannot be written: No space left"),
    ],
)
def test_streams_that_cannot_be_written(streams: str, arguments: str, told: str | None) -> None:
    line = ["sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, "-m", "capt_local"]
    result = subprocess.run([*line, *arguments.split()], capture_output=True, check=False)
    if told is None:
        assert result.returncode == 0 and result.stdout.startswith(b"capt-local ")
        return
    assert result.returncode == 2 and result.stderr.count(b"\n") == bool(told)
    assert result.stderr.startswith(f"error: {told}".encode() if told else b"")
