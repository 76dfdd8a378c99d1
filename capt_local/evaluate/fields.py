"""Reading one table of a TOML file, key by key, with errors that name the file and the key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NoReturn, TypeVar

from capt_local.bundles.manifest import NAME as NAME
from capt_local.errors import ModelError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[^\n\t -~\u00a0-\U0010ffff]")
_T = TypeVar("_T")
_KINDS: dict[type, str] = {str: "a text", int: "a whole number", dict: "a table"}


class Table:
    """One table of a manifest. Reading a key takes it out; `done` refuses what is left.

    Args:
        values: the table as parsed.
        file: the manifest, for errors.
        name: of the table, as "models.target"; empty for the top.
        present: whether files that are named have to be there.
    """

    def __init__(
        self, values: Mapping[str, object], file: Path, name: str = "", *, present: bool = True
    ) -> None:
        self._left = dict(values)
        self._present = present
        self._file = file
        self._name = name

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raises the error for a key.

        Raises:
            ModelError: always.
        """
        place = f"{self._name}.{key}" if self._name else key
        self.refuse(f"{place} {problem}.")

    def refuse(self, problem: str) -> NoReturn:
        """Raises an error about the manifest as a whole, in one sentence or more.

        Raises:
            ModelError: always.
        """
        raise ModelError(f"{self._file}: {problem}")

    def table(self, key: str) -> Table:
        """A table below this one; empty if there is none."""
        found = self._take(key, dict)
        name = f"{self._name}.{key}" if self._name else key
        return Table(found or {}, self._file, name, present=self._present)

    def __contains__(self, key: str) -> bool:
        """Whether there is such a key that has not been read yet."""
        return key in self._left

    def keys(self) -> list[str]:
        """What has not been read yet."""
        return list(self._left)

    def text(self, key: str, default: str | None = None) -> str:
        """A text without control characters; required if there is no default."""
        value = self._take(key, str)
        if value is None:
            return self._required(key) if default is None else default
        if _CONTROL.search(value):
            self.fail(key, "holds control characters")
        return value

    def optional_text(self, key: str) -> str | None:
        """A text, or None where there is no such key."""
        return self.text(key) if key in self else None

    def name(self, key: str) -> str:
        """A required short name of letters, digits, dots, dashes and underscores."""
        value = self.text(key)
        if not NAME.fullmatch(value):
            self.fail(
                key, "must be 1 to 64 letters, digits, '.', '-' or '_', first a letter or digit"
            )
        return value

    def choice(self, key: str, allowed: Iterable[str], default: str | None = None) -> str | None:
        """One of some words."""
        value = self.optional_text(key)
        words = tuple(allowed)
        if value is None:
            return default
        if value not in words:
            self.fail(key, f"must be one of {', '.join(words)}")
        return value

    def whole(self, key: str, least: int) -> int | None:
        """A whole number, or None where there is no such key."""
        value = self._take(key, int)
        if value is not None and not least <= value < 2**63:
            self.fail(key, f"must be at least {least}")
        return value

    def number(self, key: str, least: float, most: float) -> float | None:
        """A finite number within bounds, or None where there is no such key."""
        value = self._left.pop(key, None)
        return None if value is None else self._bounded(key, value, least, most)

    def numbers(self, key: str, least: float, most: float) -> tuple[float, ...]:
        """One finite number within bounds, or a list of them; none where there is no such key."""
        value = self._left.pop(key, ())
        if value == []:
            self.fail(key, "is an empty list")
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(self._bounded(key, each, least, most) for each in values)

    def done(self) -> None:
        """Refuses keys that nobody asked for: a typing error must not pass for a default.

        Raises:
            ModelError: a key is left.
        """
        for key in self._left:
            # The key itself comes from the file, so only a plain one is shown.
            shown = key if NAME.fullmatch(key) else "a key with odd characters"
            self.fail(shown, "is not known; remove it or correct its name")

    def _check_relative(self, key: str, value: str) -> None:
        """Refuses paths that lead out of the folder of the bundle or package."""
        if "\\" in value or PurePosixPath(value).is_absolute() or PureWindowsPath(value).drive:
            self.fail(key, "must be a path relative to the folder of the bundle, with '/'")
        if not value or ".." in PurePosixPath(value).parts:
            self.fail(key, "must name a file inside the folder of the bundle")

    def _bounded(self, key: str, value: object, least: float, most: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(key, "must be a number")
        if not least <= value <= most:  # neither is NaN; and no float holds every whole number
            self.fail(key, f"must be between {least:g} and {most:g}")
        return float(value)

    def _take(self, key: str, kind: type[_T]) -> _T | None:
        value = self._left.pop(key, None)
        if value is None:
            return None
        if not isinstance(value, kind) or isinstance(value, bool):
            self.fail(key, f"must be {_KINDS[kind]}")
        return value

    def _required(self, key: str) -> NoReturn:
        self.fail(key, "is missing")
