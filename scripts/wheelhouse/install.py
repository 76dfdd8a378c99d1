"""Installs capt-local from the folder that this file lies in, without a network.

install.sh starts it with the Python that the wheels are for; nothing but that Python's own library
is used. README.md beside it says what the folder holds and how to check it before any of it runs.

    DIR/versions/NAME/   a virtual environment for each wheelhouse that was installed
    DIR/current          leads to the one in use, replaced in one move
    DIR/bin/capt-local   the program
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DONE = "installed.json"
# llama.cpp starts; the import of the bundle has it load and compute with every model.
_TRY = "import llama_cpp; llama_cpp.llama_backend_init(); llama_cpp.llama_print_system_info()"
SUMS, ABOUT, REQUIREMENTS, WHEELS = "SHA256SUMS", "wheelhouse.json", "requirements.txt", "wheels"
_LINE = re.compile(r"([0-9a-f]{64})  \./([\w.+!-]+(?:/[\w.+!-]+)*)")
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
    """The digests of all files, by name. Raises Refused: there are none, or they are damaged."""
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


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_file(stick: Path, name: str, sums: Mapping[str, str]) -> None:
    """Compares a file with its digest. Raises Refused: it is not there, or is another."""
    if name not in sums:
        raise Refused(f"{SUMS} does not name {name}. {AGAIN}")
    try:
        found = sha256(stick / name)
    except FileNotFoundError:
        raise Refused(f"{name} is missing. {AGAIN}") from None
    if found != sums[name]:
        raise Refused(
            f"{name} is damaged or was changed: its SHA-256 is not that of {SUMS}. {AGAIN}"
        )


def check_machine(about: Mapping[str, Any]) -> None:
    """Whether the wheels are for this Python and this machine.

    Raises:
        Refused: they are not; says for which.
    """
    free = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    here = (
        f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}{free}, "
        f"{platform.system()} on {platform.machine()}"
    )
    wanted = "{implementation} {python}, {system} on {machine}".format(**about)
    if here != wanted:
        raise Refused(
            f"The wheels are for {wanted}, and this is {here}. Give PYTHON=/path/to/it, or make a "
            "wheelhouse for this machine."
        )
    libc = platform.libc_ver()
    name, version = about["libc"]
    if name == "glibc" and (libc[0] != name or numbers(libc[1]) < numbers(version)):
        raise Refused(
            f"The wheels are for glibc {version} or newer, and this machine has "
            f"{' '.join(libc).strip() or 'another C library'}. Make a wheelhouse on a system as "
            "old as this one."
        )
    lacking = sorted(set(about["processor"]) - processor_flags()) if processor_flags() else []
    if lacking:
        raise Refused(
            f"The processor of this machine lacks {', '.join(lacking)}, which llama.cpp was built "
            "to use. Make a wheelhouse on a machine like this, with CMAKE_ARGS=-DGGML_NATIVE=ON."
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


def prepare(place: Path, about: Mapping[str, Any], *, older: bool) -> None:
    """Makes the folder of the program, or finds an earlier installation in it.

    Raises:
        Refused: it holds other things or a newer program, or there is no room.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):
        there = json.loads((place / "current" / DONE).read_text("utf-8"))["version"]
        if numbers(about["version"]) < numbers(there) and not older:
            raise Refused(
                f"capt-local {there} is installed in {place}, and this is {about['version']}. "
                "--allow-older installs it all the same."
            )
    versions = place / "versions"
    if place.is_dir() and any(place.iterdir()) and not versions.is_dir():
        raise Refused(f"{place} holds other things. Give an empty or new folder with --to.")
    versions.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(versions).free
    if free < about["space"]:
        raise Refused(
            f"There is not enough room in {place}: {about['space'] >> 20:,} MiB are needed and "
            f"{free >> 20:,} MiB are free. Nothing was installed."
        )


def install(stick: Path, about: Mapping[str, Any], sums: Mapping[str, str], place: Path) -> Path:
    """Makes the environment of this wheelhouse, tries it, and only then leads to it.

    Returns:
        The program.

    Raises:
        Refused: it cannot be made, or does not run here; an earlier installation is what it was.
    """
    folder = place / "versions" / f"{about['version']}-{sums[REQUIREMENTS][:12]}"
    if not (folder / DONE).is_file():
        shutil.rmtree(folder, ignore_errors=True)  # of a try that was ended
        try:
            _fill(stick, sums, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # an earlier installation is in them
                folder.parent.rmdir()
                place.rmdir()
            raise
        (folder / DONE).write_text(json.dumps({"version": about["version"]}), "utf-8")
    current, before = place / "current", (place / "current").resolve()
    program = place / "bin" / "capt-local"
    program.parent.mkdir(exist_ok=True)
    _link(program, Path("..", "current", "bin", "capt-local"))
    if before != folder.resolve():
        _link(current, Path("versions", folder.name))
        for other in (place / "versions").iterdir():
            # The one before stays, since it may be running.
            if other.resolve() not in (before, folder.resolve()):
                shutil.rmtree(other, ignore_errors=True)
    return program


def _link(place: Path, target: Path) -> None:
    draft = place.with_name(f".{place.name}.new")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    os.replace(draft, place)


def _fill(stick: Path, sums: Mapping[str, str], folder: Path) -> None:
    wheels = [name for name in sums if name.startswith(f"{WHEELS}/pip-")]
    if len(wheels) != 1:
        raise Refused(f"{SUMS} does not name one wheel of pip. {AGAIN}")
    venv.EnvBuilder(symlinks=True).create(folder)
    python = folder / "bin" / "python"
    # pip runs from its own wheel, so that a Python without ensurepip will do. With nothing on its
    # path it asks no compiler for its version, which leaves traces.
    done = call(
        [
            str(python), "-I", str(stick / wheels[0] / "pip"), "install", "--isolated",
            "--no-index", "--no-cache-dir", "--no-input", "--disable-pip-version-check",
            "--only-binary=:all:", "--require-hashes", "--no-deps", "--quiet",
            "--no-warn-script-location", f"--find-links={stick / WHEELS}",
            f"--requirement={stick / REQUIREMENTS}",
        ],
        PATH=str(folder / "bin"),
    )  # fmt: skip
    if done.returncode:
        raise Refused(f"pip did not install the wheels: {reason(done)}")
    done = call([str(python), "-I", "-c", _TRY])
    if done.returncode == -signal.SIGILL:
        raise Refused(
            "The processor of this machine lacks instructions that llama.cpp was built to use. "
            "Make a wheelhouse without CMAKE_ARGS, or on one like this."
        )
    if done.returncode:  # such as a library of the system that is missing
        raise Refused(f"capt-local does not run on this machine: {reason(done)}")


def call(command: Sequence[str], **more: str) -> subprocess.CompletedProcess[str]:
    """Runs a program; nothing of the caller's settings of pip, Python and capt-local reaches it."""
    around = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIP_", "PYTHON", "CAPT_LOCAL_"))
    }
    around |= {"PIP_CONFIG_FILE": os.devnull, "NO_COLOR": "1", **more}
    return subprocess.run(
        command, env=around, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    marked = [line for line in lines if re.match(r"(error|problem):", line, re.IGNORECASE)]
    return (marked or lines or [f"it ended with code {done.returncode}"])[-1]


def trusted(program: Path) -> set[str]:
    """The fingerprints of the keys that are trusted here, by the site and by this user.

    Raises:
        Refused: the program does not tell where they lie.
    """
    ask = "from capt_local.config import key_folders; print(*key_folders(), sep='\\n')"
    done = call([str(program.resolve().parent / "python"), "-I", "-c", ask])
    if done.returncode:
        raise Refused(f"The program is installed, the bundle is not: {reason(done)}", 3)
    found = set()
    for folder in done.stdout.splitlines():
        for file in Path(folder).glob("*.pub"):
            try:
                found.add(fingerprint(file))
            except (OSError, ValueError):  # no key, which the program tells
                found.add(file.name)
    return found


def take_in(stick: Path, about: Mapping[str, Any], program: Path, compared: bool) -> None:
    """Imports the bundle of the stick, and only then trusts its key.

    Raises:
        Refused: the bundle was not taken in, or its key is not trusted; the program is installed.
    """
    key, known = stick / about["key"], trusted(program)
    new = fingerprint(key) not in known
    if new and known and not compared:
        raise Refused(
            "The program is installed, the bundle is not: other keys are trusted here, and that of "
            "the stick is none of them. Compare it with its maker, then give --fingerprint HEX.",
            3,
        )
    models = [str(program), "models"]
    once = ["--key", str(key)] if new else []
    done = call([*models, "import", str(stick / about["bundle"]), *once])
    if done.returncode:
        raise Refused(f"The program is installed, the bundle is not: {reason(done)}", 3)
    if new and (trust := call([*models, "trust", str(key)])).returncode:
        raise Refused(f"The bundle is installed, its key is not trusted: {reason(trust)}", 3)
    print(f"key          {fingerprint(key)}")
    if new and not compared:
        print("             is trusted from now on. It came with the stick, so compare it with")
        print("             what the maker of the stick tells you by another way.")
    print(f"bundle       {done.stdout.splitlines()[0]}")
    print(done.stderr, end="", file=sys.stderr)  # such as a review that is due


def run(stick: Path, given: argparse.Namespace) -> None:
    """All of it, in order: checks, program, key and bundle."""
    sums = read_sums(stick)
    check_file(stick, ABOUT, sums)
    about = json.loads((stick / ABOUT).read_text("utf-8"))
    check_machine(about)  # before gigabytes of models are read
    if given.fingerprint:
        check_file(stick, about["key"], sums)  # before anything is read out of it
        if fingerprint(stick / about["key"]) != given.fingerprint.lower():
            raise Refused(
                "The key of this stick is another one than that of --fingerprint. Stop here."
            )
    print(f"checking     {len(sums)} files", flush=True)
    for name in sums:
        check_file(stick, name, sums)
    place = Path(os.path.abspath(os.path.expanduser(given.to)))
    prepare(place, about, older=given.allow_older)
    print(f"installing   capt-local {about['version']} into {place}", flush=True)
    program = install(stick, about, sums, place)
    if not given.program_only:
        take_in(stick, about, program, bool(given.fingerprint))
    print(f"ready        {program} {about['next']}")


def main() -> int:
    """Everything that is foreseen ends with one line."""
    parser = argparse.ArgumentParser(
        prog="install.sh", description="Installs capt-local from this folder without a network."
    )
    add = parser.add_argument
    text = "where the program goes (%(default)s)"
    add("--to", type=Path, metavar="DIR", default=Path("~/capt-local"), help=text)
    text = "refuses the stick if its key is another than this one"
    add("--fingerprint", metavar="HEX", help=text)
    add("--program-only", action="store_true", help="installs neither key nor bundle")
    text = "also installs an older program than is there"
    add("--allow-older", action="store_true", help=text)
    try:
        run(Path(__file__).resolve().parent, parser.parse_args())
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on.", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error.filename or 'the disk'}: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
