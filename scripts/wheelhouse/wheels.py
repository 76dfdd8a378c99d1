"""Wheels: pip as another process, the binding built with known flags, the bill of materials.

pip keeps the wheels that it has built by their source alone, so a wheel that was built for this
processor, or for CUDA, would pass for a portable one. Those of here are kept apart, by their flags.
A portable one has AVX2 as its baseline: llama.cpp's variants for each processor
(GGML_CPU_ALL_VARIANTS) are libraries that are loaded at run time, which the binding never does.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.wheelhouse.install import reason, sha256

if TYPE_CHECKING:
    from capt_local.bundles.manifest import Bundle

BINDING = "llama-cpp-python"
# What processors of 2013 and later have. Linux tells them by these names.
_BASELINE = ("AVX", "AVX2", "BMI2", "F16C", "FMA")


class NotBuilt(Exception):
    """What stands in the way, in one line for people."""


def call(command: Sequence[str], **environment: str) -> str:
    """Runs a program, which is not to find this project by the environment; returns its output.

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
        raise NotBuilt(f"{Path(command[0]).name} {command[-1]} failed: {reason(done)}")
    return done.stdout


def pip(*arguments: str, **environment: str) -> None:
    """Runs pip with the Python of this process, whose wheels are wanted.

    Raises:
        NotBuilt: see `call`.
    """
    quiet = ("--quiet", "--disable-pip-version-check")
    call([sys.executable, "-m", "pip", arguments[0], *quiet, *arguments[1:]], **environment)


def cpu_features() -> tuple[str, ...]:
    """What a processor has to have for a portable wheel, by the names of llama.cpp and Linux."""
    return _BASELINE if platform.machine().lower() in ("x86_64", "amd64") else ()


def binding_wheel(project: Path, given: Path | None, say: Callable[[str], None]) -> Path:
    """The wheel of the binding: given, of an earlier build with the same flags, or built now.

    It is portable, unless CMAKE_ARGS says otherwise, whose flags come last and win.

    Args:
        project: the checkout, which pins the version.
        given: a wheel that was built elsewhere.
        say: takes lines about the progress.

    Raises:
        NotBuilt: it is another package or version, or cannot be built.
    """
    found = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))
    pinned = (line.partition("==") for line in found["project"]["dependencies"])
    version = next(number.strip() for name, _, number in pinned if name.strip() == BINDING)
    start = f"{BINDING.replace('-', '_')}-{version}-"
    if given is not None:
        if not (given.is_file() and given.name.startswith(start)):
            raise NotBuilt(f"{given} is no wheel of {BINDING} {version}.")
        return given
    # AMX stays off with that (docs/speed.md).
    flags = ["-DGGML_NATIVE=OFF", *(f"-DGGML_{name}=ON" for name in cpu_features())]
    flags += os.environ.get("CMAKE_ARGS", "").split()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    about = (sys.platform, platform.machine(), platform.node(), *platform.libc_ver(), *flags)
    folder = cache / "capt-local" / hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]
    for wheel in folder.glob(f"{start}*.whl"):
        say(f"the binding is of an earlier build with these flags: {wheel}")
        return wheel
    say(f"building {BINDING} {version} with {' '.join(flags)}; on two cores that takes about 10 "
        "minutes")  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as draft:
        pip(
            "wheel", "--no-deps", "--no-cache-dir", f"--no-binary={BINDING}",
            f"--wheel-dir={draft}", f"{BINDING}=={version}", CMAKE_ARGS=" ".join(flags),
        )  # fmt: skip
        (made,) = Path(draft).glob("*.whl")
        return Path(shutil.move(made, folder / made.name))


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel: its normalized name, version and digest, and the bytes of what it holds."""

    path: Path
    name: str
    version: str
    sha256: str
    unpacked: int


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
    return Wheel(
        path=path,
        name=normalized(about["Name"]),
        version=about["Version"],
        sha256=sha256(path),
        unpacked=sum(each.size or 0 for each in inside[0].files or ()),
    )


def normalized(name: str) -> str:
    """The name of a package as the index has it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(wheels: Sequence[Wheel]) -> str:
    """A requirements file in which each wheel stands with its hash; pip itself is left out."""
    return "".join(
        f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n"
        for wheel in wheels
        if wheel.name != "pip"
    )


# The bill of materials


def check_library() -> None:
    """Raises NotBuilt where cyclonedx-python-lib is missing."""
    try:
        metadata.version("cyclonedx-python-lib")
    except metadata.PackageNotFoundError:
        raise NotBuilt("The bill of materials needs: pip install '.[wheelhouse]'") from None


def bill_of_materials(root: str, wheels: Sequence[Wheel], bundle: Bundle, flags: str) -> str:
    """The bill of materials of a stick: CycloneDX 1.6 in JSON, by cyclonedx-python-lib.

    Args:
        root: name of the package that the others are for.
        wheels: all of them, that one and pip included.
        bundle: its models are components, too.
        flags: of CMake, with which the binding was built.
    """
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    licences = LicenseFactory()
    bom, packages, needs = Bom(), dict[str, Component](), dict[str, list[str]]()
    for wheel in wheels:
        (inside,) = metadata.distributions(path=[str(wheel.path)])
        packages[wheel.name] = Component(
            type=ComponentType.APPLICATION if wheel.name == root else ComponentType.LIBRARY,
            name=wheel.name,
            version=wheel.version,
            purl=PackageURL("pypi", name=wheel.name, version=wheel.version),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=wheel.sha256)],
            licenses=[licences.make_from_string(each) for each in _licences(inside)],
            properties=[Property(name="capt-local:file", value=f"wheels/{wheel.path.name}")],
        )
        needs[wheel.name] = _needs(inside)
    if BINDING in packages:  # its wheel holds llama.cpp in binary form
        packages[BINDING].properties.add(Property(name="capt-local:cmake-args", value=flags))
        packages[BINDING].components.add(
            Component(
                name="llama.cpp",
                purl=PackageURL("github", "ggml-org", "llama.cpp"),
                licenses=[licences.make_from_string("MIT")],
            )
        )
    bom.metadata.component = packages[root]
    for name, component in packages.items():
        if name != root:
            bom.components.add(component)
        bom.register_dependency(
            component, [packages[each] for each in needs[name] if each in packages]
        )
    for model in {model.path: model for model in bundle.models.values()}.values():
        bom.components.add(
            Component(
                type=ComponentType.MACHINE_LEARNING_MODEL,
                name=f"{bundle.id}/{model.path.name}",
                version=bundle.version,
                description=f"source: {model.source or 'not stated'}",
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=model.sha256 or "")],
                licenses=[licences.make_from_string(model.licence)] if model.licence else [],
            )
        )
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def _licences(inside: metadata.Distribution) -> list[str]:
    """An SPDX expression alone, or names of licences."""
    about = inside.metadata
    if expression := about.get("License-Expression"):
        return [expression]
    classifiers = [
        line.rpartition("::")[2].strip()
        for line in about.get_all("Classifier", [])
        if line.startswith("License :: OSI Approved ::")
    ]
    name = (about.get("License") or "").strip()
    # Some packages put the whole text of their licence there.
    return classifiers or ([name] if name and len(name) <= 60 and "\n" not in name else [])


def _needs(inside: metadata.Distribution) -> list[str]:
    """Normalized names of the packages that it needs here, without extras."""
    from packaging.requirements import Requirement

    needs = map(Requirement, inside.requires or ())
    here = (each for each in needs if each.marker is None or each.marker.evaluate({"extra": ""}))
    return sorted({normalized(each.name) for each in here})
