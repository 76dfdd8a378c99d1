"""A LoRA adapter on a model of a bundle, in its manifest or given by its path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import cast

from capt_local.bundle.fields import Table
from capt_local.bundle.packaged import PackageFile
from capt_local.errors import ModelError, UsageError

SCALE_LIMIT = 8.0


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A LoRA adapter as a GGUF file.

    Attributes:
        path: of the file.
        size: bytes.
        sha256: digest in hexadecimal; None for a file that was given by its path.
        scale: what it adds is multiplied by this.
        licence: of the adapter.
        source: where it comes from.
        package: the installed Python package that has the file, if the manifest names one.

    Raises:
        UsageError: the scale is not a number from -8 to 8.
    """

    path: Path
    size: int
    sha256: str | None = None
    scale: float = 1.0
    licence: str = ""
    source: str = ""
    package: PackageFile | None = None

    def __post_init__(self) -> None:
        """Refuses a scale without a meaning."""
        if not (isfinite(self.scale) and abs(self.scale) <= SCALE_LIMIT):
            raise UsageError(
                f"The scale of an adapter is a number from {-SCALE_LIMIT:g} to {SCALE_LIMIT:g}."
            )

    def __str__(self) -> str:
        """For people."""
        return f"adapter {self.path.name}" + ("" if self.scale == 1 else f" x {self.scale:g}")

    @classmethod
    def given(cls, path: str | Path, scale: float = 1.0) -> AdapterFile:
        """A file that was given by its path, without a digest.

        Raises:
            ModelError: it is missing.
            UsageError: see the class.
        """
        file = Path(path)
        try:
            if not file.is_file():
                raise ModelError(f"The adapter {file.name} is not there, or is not a file.")
            return cls(file, file.stat().st_size, scale=scale)
        except OSError as error:
            reason = error.strerror or "unreadable"
            raise ModelError(f"The adapter {file.name} cannot be read: {reason}.") from None

    @classmethod
    def parse(cls, text: str) -> AdapterFile:
        """The file of `FILE` or `FILE=SCALE`.

        Raises:
            ModelError: it is missing.
            UsageError: the scale is not a number, or see the class.
        """
        path, equals, scale = text.rpartition("=")
        if not equals or Path(text).is_file():
            return cls.given(text)
        try:
            return cls.given(path, float(scale))
        except ValueError:
            raise UsageError(
                "An adapter is given as FILE or as FILE=SCALE, as in a.gguf=0.5."
            ) from None


Adapted = str | Path | AdapterFile


def listed_adapters(given: Adapted | Sequence[Adapted] | None) -> list[AdapterFile]:
    """Adapters that were given one by one, each a path or with its scale.

    Raises:
        ModelError: a file is missing.
    """
    if given is None:
        return []
    several = [given] if isinstance(given, str | Path | AdapterFile) else given
    return [one if isinstance(one, AdapterFile) else AdapterFile.given(one) for one in several]


def read_adapter(table: Table, folder: Path) -> AdapterFile:
    """The adapter of one table of a manifest.

    Raises:
        ModelError: a key is missing or has no meaning, or there is no such file.
    """
    path, package = table.model_file(folder)
    size, digest = table.whole("size", 1), table.digest("sha256")
    for key, value in (("file", path), ("size", size), ("sha256", digest)):
        if value is None:
            table.fail(key, "is missing")
    scale = table.number("scale", -SCALE_LIMIT, SCALE_LIMIT)
    adapter = AdapterFile(
        path=cast(Path, path),
        size=cast(int, size),
        sha256=digest,
        scale=1.0 if scale is None else scale,
        licence=table.text("licence", ""),
        source=table.text("source", ""),
        package=package,
    )
    table.done()
    return adapter
