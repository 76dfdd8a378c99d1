"""Whole processes with tiny real models: streams, pipes, terminals, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
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
        path = tiny_gguf(folder / f"{role}.gguf", seed=number, flavour=flavour, context=4096)  # type: ignore[arg-type]
        flags += [f"--{role}", str(path)]
    return flags


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "capt_local", *arguments]


def done(*arguments: str, text: str = "", **options: Any) -> subprocess.CompletedProcess[bytes]:
    """A command that has run to its end, with `text` on its standard input."""
    return subprocess.run(
        command(*arguments), input=text.encode(), capture_output=True, check=False, **options
    )


def start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """A command that runs, its output in pipes."""
    return subprocess.Popen(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


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
        assert done(*verb, cwd=work, env={**env, "HOME": str(home)}).returncode == 0
    (left,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert left.name == "digests.json" and left.stat().st_mode & 0o777 == 0o600
    assert CANARY not in left.read_text()


def test_ctrl_c_stops_the_answer_and_keeps_what_is_there(models: list[str]) -> None:
    process = start(["generate", *models, "--raw", "-p", "fever", "-n", "100000"])
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (first + out).endswith(b"\n")
    assert b"interrupted" in err
    assert b"Traceback" not in err
    assert b"ignored" not in err


def test_a_reader_that_leaves_is_no_drama(models: list[str]) -> None:
    process = start(["generate", *models, "--raw", "-p", "fever", "-n", "4000"])
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
        whole = subprocess.run(command(*arguments), stdin=file, capture_output=True, check=False)
    for result, noted in ((done(*arguments, text="cough"), True), (whole, True)):
        assert result.returncode == 0
        assert (b"standard input holds text, which is not read" in result.stderr) is noted
    assert b"not read" not in done(*arguments).stderr


def test_a_model_with_nan_weights_is_exit_3(tmp_path: Path) -> None:
    broken = tiny_gguf(tmp_path / "broken.gguf", seed=1, nan=True)
    result = done("generate", "--target", str(broken), "--raw", text=CANARY)
    assert result.returncode == 3
    assert result.stdout == b""
    assert result.stderr.count(b"error: ") == 1
    assert CANARY.encode() not in result.stderr


FULL = Path("/dev/full")


def shell(redirection: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """A command with its streams as a shell sets them up."""
    line = f'exec "$@" {redirection}'
    command = ["sh", "-c", line, "sh", sys.executable, "-m", "capt_local", *arguments]
    return subprocess.run(command, capture_output=True, check=False)


def test_a_closed_standard_output_is_refused() -> None:
    result = shell(">&-", "--version")
    assert result.returncode == 2
    assert result.stderr.count(b"\n") == 1
    assert result.stderr.startswith(b"error: Standard output is closed")


def test_a_closed_standard_error_is_no_matter() -> None:
    result = shell("2>&-", "--version")
    assert result.returncode == 0
    assert result.stdout.startswith(b"capt-local ")
    assert shell(">&- 2>&-", "--version").returncode == 2


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"]])
def test_a_full_disk_behind_standard_output(arguments: list[str]) -> None:
    result = shell(f"> {FULL}", *arguments)
    assert result.returncode == 2
    assert result.stderr.count(b"\n") == 1
    assert result.stderr.startswith(b"error: Standard output cannot be written: No space left")
