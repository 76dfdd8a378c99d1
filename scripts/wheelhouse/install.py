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


def prepare(place: Path, needed: int) -> None:
    """Makes the folder of the program, or finds an earlier installation in it.

    Raises:
        Refused: it holds other things, cannot be written, or there is no room.
    """
    versions = place / "versions"
    try:
        if place.is_dir() and any(place.iterdir()) and not versions.is_dir():
            raise Refused(f"{place} holds other things. Give an empty or new folder with --to.")
        versions.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(versions).free
    except OSError as error:
        raise _unwritable(place, error) from None
    if free < needed:
        raise Refused(
            f"There is not enough room in {place}: {needed >> 20:,} MiB are needed and "
            f"{free >> 20:,} MiB are free. Nothing was installed."
        )


def _unwritable(place: Path, error: OSError) -> Refused:
    return Refused(f"{place} cannot be written: {error.strerror}. Give another place with --to.")


def check_older(place: Path, about: Mapping[str, Any]) -> None:
    """Never back to an older program, which may have faults that are known."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        there = json.loads((place / "current" / DONE).read_text("utf-8"))["version"]
        if numbers(about["version"]) < numbers(there):
            raise Refused(
                f"capt-local {there} is installed in {place}, and this is {about['version']}. "
                "--allow-older installs it all the same."
            )


def install(stick: Path, about: Mapping[str, Any], sums: Mapping[str, str], place: Path) -> Path:
    """Makes the environment of this wheelhouse, tries it, and only then leads to it.

    Returns:
        The program.

    Raises:
        Refused: it cannot be made, or does not run here; an earlier installation is what it was.
    """
    folder = place / "versions" / f"{about['version']}-{sums[REQUIREMENTS][:12]}"
    try:
        if not (folder / DONE).is_file():
            shutil.rmtree(folder, ignore_errors=True)  # of a try that was ended
            _fill(stick, sums, folder)
            (folder / DONE).write_text(json.dumps({"version": about["version"]}), "utf-8")
        _lead_to(place, folder)
    except OSError as error:
        raise _unwritable(place, error) from None
    return place / "bin" / "capt-local"


def _fill(stick: Path, sums: Mapping[str, str], folder: Path) -> None:
    wheels = [Path(name) for name in sums if name.startswith(f"{WHEELS}/pip-")]
    if len(wheels) != 1:
        raise Refused(f"{SUMS} does not name one wheel of pip. {AGAIN}")
    python = folder / "bin" / "python"
    # pip runs from its own wheel, so that a Python without ensurepip will do.
    command = [str(python), "-I", str(stick / wheels[0] / "pip"), "install", "--isolated"]
    command += ["--no-index", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    command += [
        "--only-binary=:all:",
        "--require-hashes",
        "--no-deps",
        "--quiet",
        "--no-warn-script-location",
    ]
    command += [f"--find-links={stick / WHEELS}", f"--requirement={stick / REQUIREMENTS}"]
    try:
        venv.EnvBuilder(symlinks=True).create(folder)
        # With nothing on its path, pip asks no compiler for its version, which leaves traces.
        done = call(command, PATH=str(folder / "bin"))
        if done.returncode:
            raise Refused(f"pip did not install the wheels: {_reason(done)}")
        done = call([str(python), "-I", "-c", _TRY])
        if done.returncode == -signal.SIGILL:
            raise Refused(
                "The processor of this machine lacks instructions that llama.cpp was built to "
                "use. Make a wheelhouse with --cpu portable, or on a machine like this one."
            )
        if done.returncode:
            why = _missing_library(python) or _reason(done)
            raise Refused(f"capt-local does not run on this machine: {why}")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # an earlier installation is in them
            folder.parent.rmdir()
            folder.parents[1].rmdir()
        raise


def _missing_library(python: Path) -> str:
    """Which library of the system the binding does not find; empty if that is not the reason."""
    done = call([str(python), "-I", "-c", "import llama_cpp"])
    found = re.search(r"([\w.+-]+): cannot open shared object file", done.stderr)
    return f"{found[1]} is missing. Install the package of the system that has it." if found else ""


def call(command: Sequence[str], **more: str) -> subprocess.CompletedProcess[str]:
    """Runs a program; nothing of the caller's settings of pip, Python and capt-local reaches it."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIP_", "PYTHON", "CAPT_LOCAL_"))
    }
    kept |= {"PIP_CONFIG_FILE": os.devnull, "NO_COLOR": "1", **more}
    return subprocess.run(
        command, env=kept, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    marked = [line for line in lines if re.match(r"(error|problem):", line, re.IGNORECASE)]
    return (marked or lines or [f"it ended with code {done.returncode}"])[-1]


def _lead_to(place: Path, folder: Path) -> None:
    """Leads to a version in one move, and removes all but it and the one before."""
    current, before = place / "current", (place / "current").resolve()
    (place / "bin").mkdir(exist_ok=True)
    _link(place / "bin" / "capt-local", Path("..", "current", "bin", "capt-local"))
    if before == folder.resolve():
        return
    _link(current, Path("versions", folder.name))
    for other in (place / "versions").iterdir():
        # The one before stays, since it may be running.
        if other.resolve() not in (before, folder.resolve()):
            shutil.rmtree(other, ignore_errors=True)


def _link(place: Path, target: Path) -> None:
    draft = place.with_name(f".{place.name}.new")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    os.replace(draft, place)


def trusted(program: Path) -> set[str]:
    """The fingerprints of the keys that are trusted here, by the site and by this user.

    Raises:
        Refused: the program does not tell where they lie.
    """
    ask = "from capt_local.config import key_folders; print(*key_folders(), sep='\\n')"
    done = call([str(program.resolve().parent / "python"), "-I", "-c", ask])
    if done.returncode:
        raise Refused(f"The program is installed, the bundle is not: {_reason(done)}", 3)
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
        raise Refused(f"The program is installed, the bundle is not: {_reason(done)}", 3)
    if new and (trust := call([*models, "trust", str(key)])).returncode:
        raise Refused(f"The bundle is installed, its key is not trusted: {_reason(trust)}", 3)
    print(f"key          {fingerprint(key)}")
    if new and not compared:
        print("             is trusted from now on. It came with the stick, so compare it with")
        print("             what the maker of the stick tells you by another way.")
    print(f"bundle       {done.stdout.splitlines()[0]}")
    print(done.stderr, end="", file=sys.stderr)  # such as a review that is due


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="install.sh", description="Installs capt-local from this folder without a network."
    )
    parser.add_argument("--to", type=Path, metavar="DIR", default=Path("~/capt-local"),
                        help="where the program goes (%(default)s)")  # fmt: skip
    parser.add_argument("--fingerprint", metavar="HEX",
                        help="refuses the stick if its key is another than this one")  # fmt: skip
    parser.add_argument("--program-only", action="store_true",
                        help="installs neither key nor bundle")  # fmt: skip
    parser.add_argument("--allow-older", action="store_true",
                        help="also installs an older program than is there")  # fmt: skip
    return parser.parse_args(given)


def run(stick: Path, given: argparse.Namespace) -> None:
    """All of it, in order: checks, program, key and bundle."""
    sums = read_sums(stick)
    check_file(stick, ABOUT, sums[ABOUT])
    about = json.loads((stick / ABOUT).read_text("utf-8"))
    check_machine(about)  # before gigabytes of models are read
    if given.fingerprint:
        check_key(stick, about["key"], sums, given.fingerprint)
    print(f"checking     {len(sums)} files", flush=True)
    for name, digest in sums.items():
        check_file(stick, name, digest)
    place = Path(os.path.abspath(os.path.expanduser(given.to)))
    if not given.allow_older:
        check_older(place, about)
    prepare(place, about["room"])
    print(f"installing   capt-local {about['version']} into {place}", flush=True)
    program = install(stick, about, sums, place)
    if not given.program_only:
        take_in(stick, about, program, bool(given.fingerprint))
    print(f"ready        {program} {about['next']}")


def main() -> int:
    """Everything that is foreseen ends with one line."""
    try:
        run(Path(__file__).resolve().parent, arguments(sys.argv[1:]))
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on.", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error.filename or 'the stick'}: {error.strerror}. {AGAIN}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
