"""Files of JSON Lines that grow: each line is on the disk before the next is begun.

For their owner alone (mode 0600). A stop in the middle of a line leaves a torn one, which is taken
off when the file is written again.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from capt_local.errors import UsageError

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
