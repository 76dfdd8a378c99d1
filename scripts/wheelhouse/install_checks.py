"""What install.py asks of the folder and of the machine before it installs anything."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import platform
import re
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SUMS, ABOUT, REQUIREMENTS, WHEELS = "SHA256SUMS", "wheelhouse.json", "requirements.txt", "wheels"
_LINE = re.compile(r"([0-9a-f]{64})  \./([\w.+!-]+(?:/[\w.+!-]+)*)")
_CHUNK = 1 << 20
AGAIN = "Copy the whole folder again."


class Refused(Exception):
    """What is wrong, in one line for people.

    Attributes:
        code: of the process.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def read_sums(stick: Path) -> dict[str, str]:
    """The digests of all files, by name.

    Raises:
        Refused: there are none, or they are damaged.
    """
    try:
        lines = (stick / SUMS).read_text("ascii", "replace").splitlines()
    except FileNotFoundError:
        raise Refused(f"{SUMS} is missing, so nothing can be checked. {AGAIN}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if not match or match[2] in found or ".." in match[2].split("/"):
            raise Refused(f"Line {number} of {SUMS} is damaged. {AGAIN}")
        found[match[2]] = match[1]
    for name in (ABOUT, REQUIREMENTS):
        if name not in found:
            raise Refused(f"{SUMS} does not name {name}. {AGAIN}")
    return found


def check_file(stick: Path, name: str, digest: str) -> None:
    """Holds a file against its digest.

    Raises:
        Refused: it is not there, or is another.
    """
    found = hashlib.sha256()
    try:
        with (stick / name).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                found.update(chunk)
    except FileNotFoundError:
        raise Refused(f"{name} is missing. {AGAIN}") from None
    if found.hexdigest() != digest:
        raise Refused(
            f"{name} is damaged or was changed: its SHA-256 is not that of {SUMS}. {AGAIN}"
        )


def check_key(stick: Path, name: str, sums: Mapping[str, str], wanted: str) -> None:
    """Whether the key of the stick is the one that somebody has compared.

    Raises:
        Refused: it is another one, or its file is not the one of the sums.
    """
    if name not in sums:
        raise Refused(f"{SUMS} does not name {name}. {AGAIN}")
    check_file(stick, name, sums[name])  # before anything is read out of it
    if fingerprint(stick / name) != wanted.lower():
        raise Refused("The key of this stick is another one than that of --fingerprint. Stop here.")


def check_machine(about: Mapping[str, Any]) -> None:
    """Whether the wheels are for this Python and this machine.

    Raises:
        Refused: they are not; says for which.
    """
    free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    here = f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}{'t' * free}"
    wanted = f"{about['implementation']} {about['python']}"
    if here != wanted:
        raise Refused(f"The wheels are for {wanted}, and this is {here}. Give PYTHON=/path/to/it.")
    here, wanted = (
        f"{system} on {machine}"
        for system, machine in (
            (platform.system(), platform.machine()),
            (about["system"], about["machine"]),
        )
    )
    if here != wanted:
        raise Refused(f"The wheels are for {wanted}, and this is {here}. Make some for it.")
    _check_libc(about["libc"])
    lacking = sorted(set(about["processor"]) - processor_flags()) if processor_flags() else []
    if lacking:
        raise Refused(
            f"The processor of this machine lacks {', '.join(lacking)}, which llama.cpp was built "
            "to use. Make a wheelhouse on a machine like this one, with --cpu native."
        )


def _check_libc(wanted: Sequence[str]) -> None:
    name, version = platform.libc_ver()
    if wanted[0] != "glibc":
        return
    if name != "glibc":
        raise Refused("The wheels are for Linux with glibc, and this one has another C library.")
    if numbers(version) < numbers(wanted[1]):
        raise Refused(
            f"The wheels are for glibc {wanted[1]} or newer, and this machine has {version}. Make "
            "a wheelhouse on a system as old as this one."
        )


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, to compare."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def processor_flags() -> set[str]:
    """What the processor can do, as Linux tells it; empty where nothing tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()


def fingerprint(key: Path) -> str:
    """SHA-256 of the 32 bytes of a public Ed25519 key in PEM, as capt-local tells it."""
    body = "".join(line for line in key.read_text("ascii").splitlines() if "-" not in line)
    return hashlib.sha256(base64.b64decode(body)[-32:]).hexdigest()
