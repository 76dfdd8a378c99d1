"""Reading the TOML files of tasks and styles, key by key."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path, PurePosixPath
from typing import NoReturn

from capt_local.bundle.fields import Table
from capt_local.errors import UsageError
from capt_local.strict.files import utf8
from capt_local.strict.problems import NotReadable

_LINE = re.compile(r"at line (\d+)")


class Fields(Table):
    """One table of such a file, whose errors are the user's and name no path.

    Args:
        values: the table as parsed.
        what: how errors call the file.
        name: of the table; empty for the top.
    """

    def __init__(self, values: dict[str, object], what: str, name: str = "") -> None:
        super().__init__(values, Path(what), name)
        self._what = what

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raises the error for a key.

        Raises:
            UsageError: always.
        """
        place = f"{self._name}.{key}" if self._name else key
        raise UsageError(f"{self._what}: {place} {problem}.")

    def table(self, key: str) -> Fields:
        """A table below this one; empty if there is none."""
        found = self._take(key, dict)
        return Fields(found or {}, self._what, f"{self._name}.{key}" if self._name else key)

    def everything(self) -> dict[str, object]:
        """All that is left, as it stands."""
        left, self._left = self._left, {}
        return left

    def words(self) -> dict[str, str]:
        """All that is left, where each value must be a text."""
        return {key: self.text(key) for key in self.keys()}

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty if there is none."""
        value = self._left.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self.fail(key, "must be a list of texts")
        return tuple(value)

    def count(self, key: str) -> int | None:
        """A whole number from 1 to a million, or None where there is no such key."""
        value = self.whole(key, 1)
        if value is not None and value > 1_000_000:
            self.fail(key, "must be at most a million")
        return value

    def inside(self, key: str, folder: Path) -> Path | None:
        """A file in the folder or below it, or None where there is no such key."""
        value = self.optional_text(key)
        if value is None:
            return None
        parts = PurePosixPath(value).parts
        path = folder / value
        outside = ".." in parts or not path.resolve().is_relative_to(folder.resolve())
        if not parts or "\\" in value or outside:
            self.fail(key, "must name a file inside the folder of the task, with '/'")
        if not path.is_file():
            self.fail(key, "names a file that is not there")
        return path


def parse_toml(data: bytes, what: str) -> Fields:
    """A TOML file as fields.

    Raises:
        UsageError: it is not TOML.
    """
    try:
        return Fields(tomllib.loads(utf8(data)), what)
    except NotReadable as error:
        raise UsageError(f"{what}: {error}.") from None
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        # The message itself may hold a part of the file.
        line = _LINE.search(str(error))
        raise UsageError(
            f"{what} is not TOML" + (f": see line {line.group(1)}." if line else ".")
        ) from None
