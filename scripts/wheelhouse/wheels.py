"""The wheels of a folder: what each is, and the requirements that name them by their hashes."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

try:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
except ModuleNotFoundError:  # pip, which has to be there, carries a copy
    from pip._vendor.packaging.requirements import Requirement
    from pip._vendor.packaging.utils import canonicalize_name

from scripts.wheelhouse.pip import NotBuilt

_CHUNK = 1 << 20
_LONGEST_NAME = 60  # of a licence; what is longer is its text


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
