"""Files of an evaluation that grow: the journal of results, and the answers of `--log-samples`.

Each line is on the disk before the next is begun; files are for their owner alone (mode 0600). The
journal begins with a fingerprint of everything that decides a result, so that only the same run
goes on with it; it holds ids, places of choices and figures, no text.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from capt_local.errors import UsageError
from capt_local.evaluate.run import Finished, Result

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


class LineFile:
    """A file that lines are added to.

    Args:
        path: of the file; made when it is not there.
        what: what errors call it; its name may be a patient's.

    Attributes:
        lines: what was in it when it was opened, a torn last line left out.
        torn: that line, until it is taken off.

    Raises:
        UsageError: it cannot be opened, is no regular file, or another process is writing it.
    """

    def __init__(self, path: Path, what: str) -> None:
        """Opens, locks and reads the file; changes nothing in it yet."""
        self._what = what
        self._begun = False
        try:
            # Open for as long as the run: `close` closes it.
            self._stream = open(path, "a+b", buffering=0, opener=_private)  # noqa: SIM115
        except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
            raise self._refusal(error) from None
        try:
            if not stat.S_ISREG(os.fstat(self._stream.fileno()).st_mode):
                raise UsageError(f"{what} is not a regular file. Name another one.")
            self._lock()
            self._stream.seek(0)
            data = self._stream.readall()
        except BaseException as error:
            self.close()
            raise (self._refusal(error) if isinstance(error, OSError) else error) from None
        self._whole = data.rfind(b"\n") + 1
        self.torn = data[self._whole :]
        self.lines = data[: self._whole].split(b"\n")[:-1]

    def append(self, value: Any) -> None:
        """Adds a line and waits until the disk has it; the file is its owner's alone from then on.

        Raises:
            UsageError: the disk is full, or broken.
        """
        rest = memoryview(json.dumps(value, ensure_ascii=True, allow_nan=False).encode() + b"\n")
        try:
            if not self._begun:
                self._begin()
            while rest:
                rest = rest[self._stream.write(rest) or 0 :]
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise self._refusal(error) from None

    def close(self) -> None:
        """Closes the file; safe to call again."""
        self._stream.close()

    def _begin(self) -> None:
        """Before the first line: the file was perhaps there before, with a torn line at its end."""
        if hasattr(os, "fchmod"):
            os.fchmod(self._stream.fileno(), 0o600)
        if self.torn:
            self._stream.truncate(self._whole)
            self.torn = b""
        self._begun = True

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{self._what} is being written by another run.") from None
        except OSError:
            return  # a file system without locks

    def _refusal(self, error: OSError | ValueError) -> UsageError:
        reason = getattr(error, "strerror", None) or "no access"
        return UsageError(f"{self._what} cannot be written: {reason}.")


def _private(path: str, flags: int) -> int:
    # Without O_NONBLOCK a pipe of that name would wait for a reader.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o600)


_MARK = "capt_local_eval"
_VERSION = 1
_JOURNAL_HEAD = f'{{"{_MARK}": '.encode()
_RESULTS = "The results file (--results)"


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
        self._file = LineFile(path, _RESULTS)
        try:
            lines = self._file.lines
            torn = self._file.torn
            # Only the beginning of a first line of ours may be written over.
            if not lines and torn[: len(_JOURNAL_HEAD)] != _JOURNAL_HEAD[: len(torn)]:
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
                f"{_RESULTS} is of a run with other settings; what differs: {shown}. "
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
        raise UsageError(f"{_RESULTS} was written by another version. Name a new file.")
    fingerprint: dict[str, Any] = head["fingerprint"]
    return fingerprint


def _result(number: int, line: bytes) -> Result:
    try:
        return Result.from_object(json.loads(line))
    except (ValueError, RecursionError):
        raise UsageError(f"{_RESULTS}, line {number}: not a result. Name a new file.") from None


def _other_file() -> UsageError:
    return UsageError(f"{_RESULTS} is not of capt-local eval. Nothing was written; name another.")


_SAMPLES = "The file of answers (--log-samples)"
_SAMPLE_HEAD = b'{"task": '


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
        self._file = LineFile(path, _SAMPLES)
        first = (*self._file.lines, self._file.torn)[0]
        ours = first[: len(_SAMPLE_HEAD)] == _SAMPLE_HEAD[: len(first)]
        if first and not (resumed and ours and _is_sample(self._file.lines[:1])):
            self.close()
            raise UsageError(f"{_SAMPLES} holds something already. Name a new file.")
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
