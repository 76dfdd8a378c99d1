"""pip and other programs, as other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class NotBuilt(Exception):
    """What stands in the way, in one line for people."""


def surroundings(**more: str) -> dict[str, str]:
    """The environment for another process, which is not to find this project by it."""
    return {**{name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}, **more}


def _ran(
    command: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=surroundings(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def pip(*arguments: str, **environment: str) -> None:
    """Runs pip with the Python of this process, whose wheels are wanted.

    Args:
        arguments: of pip.
        environment: variables to set besides.

    Raises:
        NotBuilt: it failed; with its last line about an error.
    """
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    done = _ran(command, environment)
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error")]
        reason = (errors or lines or ["it says nothing"])[-1]
        raise NotBuilt(f"pip {arguments[0]} failed: {reason}")


def call(command: Sequence[str], **environment: str) -> str:
    """Runs a program.

    Args:
        command: the program and what it is given.
        environment: variables to set besides.

    Returns:
        What it says on standard output.

    Raises:
        NotBuilt: it failed; with the last line that it says on standard error.
    """
    done = _ran(command, environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"{Path(command[0]).name} failed"]
        raise NotBuilt(lines[-1].removeprefix("error: "))
    return done.stdout
