"""The journal of an evaluation: every finished item is safe, and only the same run goes on with it.

The first line is a fingerprint of everything that decides a result; then one result a line. Holds
ids, places of choices and figures, no text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from capt_local.errors import UsageError
from capt_local.evaluate.runs.lines import LineFile
from capt_local.evaluate.runs.result import Result

_MARK = "capt_local_eval"
_VERSION = 1
_HEAD = f'{{"{_MARK}": '.encode()
_WHAT = "The results file (--results)"


class Journal:
    """A results file that is open for one run. Use it as a context manager.

    Attributes:
        done: the results of earlier runs.
        fingerprint: of the earlier runs; None for a new file.
    """

    def __init__(self, path: Path) -> None:
        """Opens and reads the file.

        Raises:
            UsageError: it cannot be read or written, or is something else.
        """
        self._file = LineFile(path, _WHAT)
        try:
            lines = self._file.lines
            torn = self._file.torn
            # Only the beginning of a first line of ours may be written over.
            if not lines and torn[: len(_HEAD)] != _HEAD[: len(torn)]:
                raise _other_file()
            self._head: dict[str, Any] | None = None
            self.fingerprint = _fingerprint(lines[0]) if lines else None
            self.done = [_result(number, line) for number, line in enumerate(lines[1:], 2)]
        except BaseException:
            self._file.close()
            raise

    def begin(self, fingerprint: Mapping[str, Any]) -> None:
        """Compares the fingerprint with that of an old file.

        A new file gets it together with its first result.

        Args:
            fingerprint: values that JSON has; compared name by name.

        Raises:
            UsageError: the file is of another run; names what differs.
        """
        ours = json.loads(json.dumps(fingerprint))
        if self.fingerprint is None:
            self._head = {_MARK: _VERSION, "fingerprint": ours}
        elif names := differing(self.fingerprint, ours):
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if names[8:] else "")
            raise UsageError(
                f"{_WHAT} is of a run with other settings; what differs: {shown}. "
                "Use the same settings, or name a new file."
            )

    def append(self, result: Result) -> None:
        """Adds a result; it is on the disk when this returns."""
        if self._head is not None:
            self._file.append(self._head)
            self._head = None
        self._file.append(result.as_object())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self.close()


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Dotted names of the values in which two fingerprints differ."""
    left, right = dict(_flat(one)), dict(_flat(other))
    names = [*left, *(name for name in right if name not in left)]
    missing = object()
    return [name for name in names if left.get(name, missing) != right.get(name, missing)]


def _flat(value: Mapping[str, Any], front: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{front}{name}.")
        else:
            yield f"{front}{name}", item


def _fingerprint(line: bytes) -> dict[str, Any]:
    try:
        head = json.loads(line)
    except (ValueError, RecursionError):
        raise _other_file() from None
    if not isinstance(head, dict) or _MARK not in head:
        raise _other_file()
    if head[_MARK] != _VERSION or not isinstance(head.get("fingerprint"), dict):
        raise UsageError(f"{_WHAT} was written by another version. Name a new file.")
    fingerprint: dict[str, Any] = head["fingerprint"]
    return fingerprint


def _result(number: int, line: bytes) -> Result:
    try:
        return Result.from_object(json.loads(line))
    except (ValueError, RecursionError):
        raise UsageError(f"{_WHAT}, line {number}: not a result. Name a new file.") from None


def _other_file() -> UsageError:
    return UsageError(f"{_WHAT} is not one of capt-local eval. Nothing was written; name another.")
