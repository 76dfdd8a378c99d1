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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
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
_LONGEST_NAME = 60  # of a licence; what is longer is its text


class NotBuilt(Exception):
    """What stands in the way, in one line for people."""


def call(command: Sequence[str], **environment: str) -> str:
    """Runs a program, which is not to find this project by the environment.

    Args:
        command: the program and its arguments.
        environment: variables to set besides.

    Returns:
        What it says on standard output.

    Raises:
        NotBuilt: it failed; with its last line about an error.
    """
    around = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        env={**around, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error")]
        reason = (errors or lines or ["it says nothing"])[-1]
        raise NotBuilt(f"{Path(command[0]).name} {command[-1]} failed: {reason}")
    return done.stdout


def pip(*arguments: str, **environment: str) -> None:
    """Runs pip with the Python of this process, whose wheels are wanted.

    Raises:
        NotBuilt: see `call`.
    """
    quiet = ("--quiet", "--disable-pip-version-check")
    call([sys.executable, "-m", "pip", arguments[0], *quiet, *arguments[1:]], **environment)


def is_x86() -> bool:
    """Whether this machine has the processors that the baseline is of."""
    return platform.machine().lower() in ("x86_64", "amd64")


@dataclass(frozen=True, slots=True)
class Build:
    """How the binding is built.

    Attributes:
        native: for processors like that of this machine; else for any x86-64 with AVX2, or ARM64.
        given: a wheel that was built elsewhere, in the place of a build.
    """

    native: bool = False
    given: Path | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """For CMake; those of the variable CMAKE_ARGS come after them and win."""
        flags: list[str] = []
        if not self.native:  # nothing of this machine; AMX stays off with that (docs/speed.md)
            flags = ["-DGGML_NATIVE=OFF"]
            flags += [f"-DGGML_{name}=ON" for name in _BASELINE if is_x86()]
        return (*flags, *os.environ.get("CMAKE_ARGS", "").split())

    @property
    def needs(self) -> list[str]:
        """What a processor has to have, where that is known."""
        known = self.given is None and not self.native and is_x86()
        return [name.lower() for name in _BASELINE] if known else []

    @property
    def folder(self) -> Path:
        """Where the wheel of these flags is kept; other systems and flags have other folders."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        parts = [sys.platform, platform.machine(), *platform.libc_ver(), *self.flags]
        parts.append(platform.node() if self.native else "")
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
        return cache / "capt-local" / "bindings" / name


def pinned(project: Path) -> str:
    """The one version of the binding that the package takes."""
    found = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))
    lines = (line.partition("==") for line in found["project"]["dependencies"])
    return next(version.strip() for name, _, version in lines if name.strip() == BINDING)


def binding_wheel(build: Build, version: str, say: Callable[[str], None]) -> Path:
    """The wheel: given, of an earlier build with these flags, or built now.

    Raises:
        NotBuilt: it is another package or version, or cannot be built.
    """
    start = f"{BINDING.replace('-', '_')}-{version}-"
    if build.given is not None:
        if not (build.given.is_file() and build.given.name.startswith(start)):
            raise NotBuilt(f"{build.given} is no wheel of {BINDING} {version}.")
        return build.given
    for wheel in build.folder.glob(f"{start}*.whl"):
        say(f"the binding is of an earlier build with these flags: {wheel}")
        return wheel
    say(f"building {BINDING} {version} with {' '.join(build.flags) or 'its own flags'}; "
        "on two cores that takes about 10 minutes")  # fmt: skip
    build.folder.mkdir(parents=True, exist_ok=True)
    # Without flags, one that pip has kept will do: it is of this machine.
    fresh = ("--no-cache-dir", f"--no-binary={BINDING}") if build.flags else ()
    with tempfile.TemporaryDirectory(dir=build.folder.parent) as draft:
        pip(
            "wheel", "--no-deps", *fresh, f"--wheel-dir={draft}", f"{BINDING}=={version}",
            CMAKE_ARGS=" ".join(build.flags),
        )  # fmt: skip
        (made,) = Path(draft).glob("*.whl")
        return Path(shutil.move(made, build.folder / made.name))


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel.

    Attributes:
        path: of the file.
        name: normalized, as the index has it.
        version: as its metadata say.
        sha256: of the file.
        unpacked: bytes of what it holds.
        licences: an SPDX expression alone, or names of licences.
        is_expression: whether it is an expression.
        needs: names of the packages that it needs here, without extras.
    """

    path: Path
    name: str
    version: str
    sha256: str
    unpacked: int
    licences: tuple[str, ...]
    is_expression: bool
    needs: tuple[str, ...]


def read_wheels(folder: Path) -> list[Wheel]:
    """The wheels of a folder, by name.

    Raises:
        NotBuilt: one is no wheel, or two are of one package.
    """
    found: dict[str, Wheel] = {}
    for path in folder.glob("*.whl"):
        wheel = _read(path)
        if found.setdefault(wheel.name, wheel) is not wheel:
            raise NotBuilt(f"There are two wheels of {wheel.name}.")
    return [found[name] for name in sorted(found)]


def _read(path: Path) -> Wheel:
    inside = list(metadata.distributions(path=[str(path)]))
    if len(inside) != 1:
        raise NotBuilt(f"{path.name} is no wheel.")
    about = inside[0].metadata
    expression = about.get("License-Expression")
    classifiers = [
        line.rpartition("::")[2].strip()
        for line in about.get_all("Classifier", [])
        if line.startswith("License :: OSI Approved ::")
    ]
    name = (about.get("License") or "").strip()
    plain = [name] if name and len(name) <= _LONGEST_NAME and "\n" not in name else []
    needs = map(Requirement, inside[0].requires or ())
    here = (each for each in needs if each.marker is None or each.marker.evaluate({"extra": ""}))
    return Wheel(
        path=path,
        name=canonicalize_name(about["Name"]),
        version=about["Version"],
        sha256=sha256(path),
        unpacked=sum(each.size or 0 for each in inside[0].files or ()),
        licences=tuple([expression] if expression else classifiers or plain),
        is_expression=bool(expression),
        needs=tuple(sorted({canonicalize_name(each.name) for each in here})),
    )


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def requirements(wheels: Sequence[Wheel]) -> str:
    """A requirements file in which each wheel stands with its hash; pip itself is left out."""
    return "".join(
        f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n"
        for wheel in wheels
        if wheel.name != "pip"
    )


def bill(
    root: str,
    wheels: Sequence[Wheel],
    models: Sequence[Mapping[str, str]],
    build: Mapping[str, object],
    when: str,
) -> dict[str, object]:
    """The bill of materials, as CycloneDX 1.6 in JSON.

    Args:
        root: name of the package that all others are for.
        wheels: all of them, that package and pip included.
        models: the bundle's files: type in CycloneDX, name, version, sha256, licence, source.
        build: how the binding was built.
        when: the time in ISO 8601.
    """
    links = {wheel.name: f"pkg:pypi/{wheel.name}@{wheel.version}" for wheel in wheels}
    links = {name: link.replace("+", "%2B") for name, link in links.items()}
    packages = {}
    for wheel in wheels:
        names = [{"license": {"name": name}} for name in wheel.licences]
        packages[wheel.name] = {
            "type": "application" if wheel.name == root else "library",
            "name": wheel.name,
            "version": wheel.version,
            "bom-ref": links[wheel.name],
            "purl": links[wheel.name],
            "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
            "licenses": [{"expression": wheel.licences[0]}] if wheel.is_expression else names,
            "properties": [{"name": "capt-local:file", "value": f"wheels/{wheel.path.name}"}],
            # pip installs the others and is not installed itself.
            "scope": "excluded" if wheel.name == "pip" else "required",
        }
    if BINDING in packages:
        packages[BINDING]["properties"] += [  # type: ignore[operator]
            {"name": f"capt-local:build:{name}", "value": str(value)}
            for name, value in build.items()
        ]
        # What its wheel holds in binary form; which build of it, the version of the binding says.
        inside = "pkg:github/ggml-org/llama.cpp"
        packages[BINDING]["components"] = [{
            "type": "library", "name": "llama.cpp", "bom-ref": inside, "purl": inside,
            "licenses": [{"license": {"name": "MIT"}}],
        }]  # fmt: skip
    files = [
        {
            "type": model["type"],
            "name": model["name"],
            "version": model["version"],
            "bom-ref": f"{model['name']}@{model['sha256']}",
            "description": f"source: {model['source'] or 'not stated'}",
            "hashes": [{"alg": "SHA-256", "content": model["sha256"]}],
            "licenses": [{"license": {"name": model["licence"]}}] if model["licence"] else [],
        }
        for model in models
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"timestamp": when, "component": packages.pop(root)},
        "components": [*packages.values(), *files],
        "dependencies": [
            {
                "ref": links[wheel.name],
                "dependsOn": [links[name] for name in wheel.needs if name in links],
            }
            for wheel in wheels
        ],
    }
