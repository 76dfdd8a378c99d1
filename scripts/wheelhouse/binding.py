"""The wheel of the binding: built with flags that are known, kept by them, or given.

pip keeps the wheels that it has built by their source alone, so a wheel that was built for this
processor, or for CUDA, would pass for a portable one. Those of here are kept apart, by their flags.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from scripts.wheelhouse.pip import NotBuilt, pip

BINDING = "llama-cpp-python"
# What processors of 2013 and later have. Linux tells them by these names.
_BASELINE = ("AVX", "AVX2", "BMI2", "F16C", "FMA")


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
