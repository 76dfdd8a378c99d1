"""Wheels: pip as another process, the binding built with known flags, what each wheel is.

pip keeps the wheels that it has built by their source alone, so a wheel that was built for this
processor, or for CUDA, would pass for a portable one. Those of here are kept apart, by their flags.
A portable one has AVX2 as its baseline: llama.cpp's variants for each processor
(GGML_CPU_ALL_VARIANTS) are libraries that are loaded at run time, which the binding never does.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from enum import StrEnum
from pathlib import Path

try:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
except ModuleNotFoundError:  # pip, which has to be there, carries a copy
    from pip._vendor.packaging.requirements import Requirement
    from pip._vendor.packaging.utils import canonicalize_name

BINDING = "llama-cpp-python"
# What processors of 2013 and later have. Linux tells them by these names.
_BASELINE = ("AVX", "AVX2", "BMI2", "F16C", "FMA")


_CHUNK = 1 << 20
_LONGEST_NAME = 60  # of a licence; what is longer is its text


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


class Backend(StrEnum):
    """What computes."""

    CPU = "cpu"
    CUDA = "cuda"
    METAL = "metal"


class Processor(StrEnum):
    """Which processors the part for the CPU is built for."""

    PORTABLE = "portable"
    NATIVE = "native"


@dataclass(frozen=True, slots=True)
class Build:
    """How the binding is built.

    Attributes:
        backend: what computes.
        processor: for which processors.
        given: a wheel that was built elsewhere, in the place of a build.
    """

    backend: Backend = Backend.CPU
    processor: Processor = Processor.PORTABLE
    given: Path | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """For CMake; those of the variable CMAKE_ARGS come after them and win."""
        flags = []
        if self.processor is Processor.PORTABLE:
            # Nothing of this machine; AMX stays off with that (docs/speed.md).
            flags.append("-DGGML_NATIVE=OFF")
            flags += [f"-DGGML_{name}=ON" for name in _BASELINE if _is_x86()]
        if self.backend is not Backend.CPU:
            flags.append(f"-DGGML_{self.backend.value.upper()}=ON")
        return (*flags, *os.environ.get("CMAKE_ARGS", "").split())

    @property
    def needs(self) -> list[str]:
        """What a processor has to have, where that is known."""
        known = self.given is None and self.processor is Processor.PORTABLE and _is_x86()
        return [name.lower() for name in _BASELINE] if known else []

    def told(self) -> dict[str, object]:
        """For those who get the wheel."""
        if self.given is not None:
            return {"given": self.given.name}
        return {
            "backend": self.backend.value,
            "processor": self.processor.value,
            "cmake_args": list(self.flags),
        }


def pinned(project: Path) -> str:
    """The one version of the binding that the package takes.

    Raises:
        NotBuilt: the project file names none.
    """
    found = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))
    for line in found["project"]["dependencies"]:
        name, _, version = line.partition("==")
        if name.strip() == BINDING and version:
            return version.strip()
    raise NotBuilt(f"pyproject.toml pins no version of {BINDING}.")


def check_given(build: Build, version: str) -> None:
    """Whether a wheel that was built elsewhere will do, if one is given.

    Raises:
        NotBuilt: it is not there, or is another package or version.
    """
    if build.given is None:
        return
    if not build.given.is_file():
        raise NotBuilt(f"There is no wheel at {build.given}.")
    if not build.given.name.startswith(f"{BINDING.replace('-', '_')}-{version}-"):
        raise NotBuilt(f"{build.given.name} is no wheel of {BINDING} {version}.")


def binding_wheel(build: Build, version: str, say: Callable[[str], None]) -> Path:
    """The wheel: given, of an earlier build with these flags, or built now.

    Raises:
        NotBuilt: it is another package or version, or cannot be built.
    """
    if build.given is not None:
        check_given(build, version)
        return build.given
    folder = _kept(build, version)
    for wheel in folder.glob("*.whl"):
        say(f"the binding is of an earlier build with these flags: {wheel}")
        return wheel
    say(f"building {BINDING} {version} with {' '.join(build.flags) or 'its own flags'}; "
        "on two cores that takes about 10 minutes")  # fmt: skip
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Without flags, one that pip has kept will do: it is of this machine.
    fresh = ("--no-cache-dir", f"--no-binary={BINDING}") if build.flags else ()
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        pip(
            "wheel", "--no-deps", *fresh, f"--wheel-dir={draft}", f"{BINDING}=={version}",
            CMAKE_ARGS=" ".join(build.flags),
        )  # fmt: skip
        shutil.copytree(draft, folder, dirs_exist_ok=True)
    return next(folder.glob("*.whl"))


def _kept(build: Build, version: str) -> Path:
    """Where the wheel of these flags lies; another system or compiler host has another folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parts = (version, sys.platform, platform.machine(), *platform.libc_ver(), *build.flags)
    if build.processor is Processor.NATIVE:
        parts = (*parts, platform.node())
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return cache / "capt-local" / "bindings" / name


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel.

    Attributes:
        path: of the file.
        name: normalized, as the index has it.
        version: as its metadata say.
        sha256: of the file.
        unpacked: bytes of what it holds.
        expression: its licence as an SPDX expression, or empty.
        licences: names of licences, where there is no expression.
        needs: names of the packages that it needs here, without extras.
    """

    path: Path
    name: str
    version: str
    sha256: str
    unpacked: int
    expression: str
    licences: tuple[str, ...]
    needs: tuple[str, ...]


def read_wheels(folder: Path) -> list[Wheel]:
    """The wheels of a folder, by name.

    Raises:
        NotBuilt: one is no wheel, or two are of one package.
    """
    found = [_read(path) for path in sorted(folder.glob("*.whl"))]
    names = [wheel.name for wheel in found]
    for name in names:
        if names.count(name) > 1:
            raise NotBuilt(f"There are two wheels of {name}.")
    return sorted(found, key=lambda wheel: wheel.name)


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def requirements(wheels: Iterable[Wheel]) -> str:
    """A requirements file in which each wheel stands with its hash; pip itself is left out."""
    lines = [
        f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n"
        for wheel in wheels
        if wheel.name != "pip"
    ]
    return "".join(lines)


def _read(path: Path) -> Wheel:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
            about = BytesParser().parsebytes(archive.read(names[0]), headersonly=True)
            unpacked = sum(each.file_size for each in archive.infolist())
    except (zipfile.BadZipFile, IndexError):
        raise NotBuilt(f"{path.name} is no wheel.") from None
    expression = about.get("License-Expression", "")
    return Wheel(
        path=path,
        name=canonicalize_name(about["Name"]),
        version=about["Version"],
        sha256=sha256(path),
        unpacked=unpacked,
        expression=expression,
        licences=() if expression else _licences(about),
        needs=_needs(about),
    )


def _licences(about: Message) -> tuple[str, ...]:
    classifiers = [
        line.rpartition("::")[2].strip()
        for line in about.get_all("Classifier", [])
        if line.startswith("License :: OSI Approved ::")
    ]
    name = about.get("License", "").strip()
    plain = [name] if name and len(name) <= _LONGEST_NAME and "\n" not in name else []
    return tuple(classifiers or plain)


def _needs(about: Message) -> tuple[str, ...]:
    found = map(Requirement, about.get_all("Requires-Dist", []))
    here = (each for each in found if each.marker is None or each.marker.evaluate({"extra": ""}))
    return tuple(sorted({canonicalize_name(each.name) for each in here}))
