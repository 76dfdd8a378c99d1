"""The file of answers that `--log-samples` asks for. It holds text; nothing else here does."""

from __future__ import annotations

import json
from pathlib import Path

from capt_local.errors import UsageError
from capt_local.evaluate.harness import Finished
from capt_local.evaluate.lines import LineFile

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

    def append(self, finished: Finished) -> None:
        """Adds the answers to an item.

        Raises:
            UsageError: the disk is full.
        """
        result = finished.result
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


def _is_sample(lines: list[bytes]) -> bool:
    """Whether a first line, if there is one, is of this program."""
    try:
        return all({"task", "method", "answers"} <= set(json.loads(line)) for line in lines)
    except (ValueError, TypeError, RecursionError):
        return False
