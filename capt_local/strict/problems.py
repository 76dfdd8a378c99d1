"""What is wrong with a file, told by place and never by content."""

from __future__ import annotations

from typing import NoReturn

from capt_local.errors import UsageError


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
