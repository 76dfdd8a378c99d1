"""The file of answers that `--log-samples` asks for. It holds text; nothing else here does."""

from __future__ import annotations

import json
from pathlib import Path

from capt_local.errors import UsageError
from capt_local.evaluate.runs.harness import Finished
from capt_local.evaluate.runs.lines import LineFile

_WHAT = "The file of answers (--log-samples)"
_HEAD = b'{"task": '


class SampleLog:
    """Adds a line for each item and method. Use it as a context manager.

    Args:
        path: of the file.
        resumed: whether it goes on from an earlier run; else it must not hold anything yet.

    Raises:
        UsageError: it cannot be written, or holds something else.
    """

    def __init__(self, path: Path, *, resumed: bool) -> None:
        """Opens the file; changes nothing in it yet."""
        self._file = LineFile(path, _WHAT)
        first = (*self._file.lines, self._file.torn)[0]
        ours = first[: len(_HEAD)] == _HEAD[: len(first)]
        if first and not (resumed and ours and _is_sample(self._file.lines[:1])):
            self.close()
            raise UsageError(f"{_WHAT} holds something already. Name a new file.")
        self._there = {place for line in self._file.lines if (place := _answered(line))}

    def append(self, finished: Finished) -> None:
        """Adds the answers to an item.

        A run that was killed may have kept the answers and not yet the result; made again, they
        are the same, and are not written twice.

        Raises:
            UsageError: the disk is full.
        """
        result = finished.result
        if not result.failed and result.place in self._there:
            return
        self._file.append(
            {
                "task": result.task,
                "method": result.method,
                "id": result.item,
                "failed": result.failed,
                "answers": list(finished.answers),
                "said": finished.said,
                "logps": list(finished.logps),
            }
        )

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> SampleLog:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self.close()


def _answered(line: bytes) -> tuple[str, str, str] | None:
    """The task, method and item of a line with answers; None of a failure, or of no such line."""
    try:
        value = json.loads(line)
        return None if value["failed"] else (value["task"], value["method"], value["id"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _is_sample(lines: list[bytes]) -> bool:
    """Whether a first line, if there is one, is of this program."""
    try:
        return all({"task", "method", "answers"} <= set(json.loads(line)) for line in lines)
    except (ValueError, TypeError, RecursionError):
        return False
