"""Reading files of others strictly: what is not quite right is refused, with its line.

No error holds a part of the file or its name: both may be a patient's.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from capt_local.errors import UsageError

LARGEST = 64 << 20


class NotReadable(Exception):
    """What is wrong with one line or value; the text holds nothing of it."""


class Problems:
    """Collects what is wrong with a file, line by line, and raises it as one error.

    Args:
        what: how errors call the file.
        unit: what is counted: "line", or "row" where rows are not lines.
    """

    def __init__(self, what: str, unit: str = "line") -> None:
        self._what = what
        self._unit = unit
        self._first: tuple[int | None, str] | None = None
        self._lines: set[int] = set()

    def add(self, line: int, problem: str | NotReadable) -> None:
        """Notes that a line is wrong, and why; the first one is told."""
        if self._first is None:
            self._first = (line, str(problem))
        self._lines.add(line)

    def settle(self) -> None:
        """Raises what was noted.

        Raises:
            UsageError: a line is wrong.
        """
        if self._first is None:
            return
        line, problem = self._first
        more = len(self._lines) - 1
        rest = f" {more} more {self._unit}{'s are' if more > 1 else ' is'} wrong too."
        raise UsageError(f"{self._what}, {self._unit} {line}: {problem}.{rest if more else ''}")

    def fail(self, problem: str) -> NoReturn:
        """Raises the error of a file that is wrong as a whole.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self._what}: {problem}.")


def read_bytes(path: Path, what: str) -> bytes:
    """The bytes of a file, without the mark that some programs put in front of UTF-8.

    Raises:
        UsageError: it cannot be read, or is larger than 64 MiB.
    """
    try:
        if not path.is_file():
            reason = "it is not a file" if path.exists() else "there is no such file"
            raise UsageError(f"{what} cannot be read: {reason}.")
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{what} is larger than {LARGEST >> 20} MiB.")
        return path.read_bytes().removeprefix(BOM_UTF8)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no access"
        raise UsageError(f"{what} cannot be read: {reason}.") from None


def utf8(data: bytes) -> str:
    """Bytes as text.

    Raises:
        NotReadable: they are not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        # The error itself holds the bytes.
        raise NotReadable(f"not UTF-8 at byte {error.start}") from None


def parse_json(data: bytes) -> object:
    """Bytes as JSON: no key twice, no NaN or infinity, no half of a character.

    Raises:
        NotReadable: they are not.
    """
    text = utf8(data)
    try:
        value: object = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_finite
        )
        check_characters(value)
    except NotReadable:
        raise
    except RecursionError:
        raise NotReadable("nested too deeply") from None
    except ValueError:
        # A message of the JSON reader would hold a part of the line.
        raise NotReadable("not JSON") from None
    return value


def lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, with their numbers; only a line feed ends a line."""
    return ((number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip())


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise NotReadable("a key stands there twice")
    return found


def _constant(_: str) -> NoReturn:
    raise NotReadable("NaN and infinity are not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise NotReadable("a number is too large")
    return value


def check_characters(value: object) -> None:
    """Refuses texts in a value of JSON that are no UTF-8.

    Raises:
        NotReadable: there is half of a character.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise NotReadable("half of a character (a lone surrogate)") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            check_characters(key)
            check_characters(item)
    elif isinstance(value, list):
        for item in value:
            check_characters(item)
