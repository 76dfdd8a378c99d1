"""Standard streams that are closed or cannot be written: one line, the right exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.fake_runtime import Script

FULL = Path("/dev/full")
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")


def shell(redirection: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """A command with its streams as a shell sets them up."""
    line = f'exec "$@" {redirection}'
    command = ["sh", "-c", line, "sh", sys.executable, "-m", "capt_local", *arguments]
    return subprocess.run(command, capture_output=True, check=False)


def test_a_closed_standard_input_is_no_matter_if_there_is_a_prompt(
    run: Run, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capt_local.cli.files import read_prompt
    from capt_local.cli.options import PromptFlags
    from capt_local.errors import UsageError

    monkeypatch.setattr(sys, "stdin", None)
    assert read_prompt(PromptFlags(prompt="hi", raw=True)) == "hi"
    for flags in (PromptFlags(), PromptFlags(prompt="-")):
        with pytest.raises(UsageError, match="no prompt"):
            read_prompt(flags)


@posix
def test_a_closed_standard_output_is_refused() -> None:
    result = shell(">&-", "--version")
    assert result.returncode == 2
    assert result.stderr.count(b"\n") == 1
    assert result.stderr.startswith(b"error: Standard output is closed")


@posix
def test_a_closed_standard_error_is_no_matter() -> None:
    result = shell("2>&-", "--version")
    assert result.returncode == 0
    assert result.stdout.startswith(b"capt-local ")
    assert shell(">&- 2>&-", "--version").returncode == 2


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"]])
def test_a_full_disk_behind_standard_output(arguments: list[str]) -> None:
    result = shell(f"> {FULL}", *arguments)
    assert result.returncode == 2
    assert result.stderr.count(b"\n") == 1
    assert result.stderr.startswith(b"error: Standard output cannot be written: No space left")
