"""Files of JSON Lines that grow: each line is on the disk before the next is begun.

For their owner alone (mode 0600). A stop in the middle of a line leaves a torn one, which is taken
off when the file is opened again.
"""

from __future__ import annotations

import contextlib
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
        lines: what was in it, torn last line left out; `append` does not add to this.

    Raises:
        UsageError: it cannot be opened, is no regular file, or another process is writing it.
    """

    def __init__(self, path: Path, what: str) -> None:
        """Opens, locks and reads the file; changes nothing in it yet."""
        self._what = what
        self._handle: int | None = None
        try:
            # Without O_NONBLOCK a pipe of that name would wait for a reader.
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0)
            self._handle = os.open(path, flags, 0o600)
            if not stat.S_ISREG(os.fstat(self._handle).st_mode):
                raise UsageError(f"{what} is not a regular file. Name another one.")
            if fcntl is not None:
                self._lock()
            data = self._read()
        except OSError as error:
            self.close()
            raise self._refusal(error) from None
        except BaseException:
            self.close()
            raise
        end = data.rfind(b"\n") + 1
        self.torn = data[end:]
        self._whole = end
        self._begun = False
        self.lines = data[:end].split(b"\n")[:-1]

    def append(self, value: Any) -> None:
        """Adds a line and waits until the disk has it; the file is its owner's alone from then on.

        Raises:
            UsageError: the disk is full, or broken.
        """
        assert self._handle is not None, "the file is closed"
        line = json.dumps(value, ensure_ascii=True, allow_nan=False).encode() + b"\n"
        try:
            if not self._begun:
                self._begin(self._handle)
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            os.fsync(self._handle)
        except OSError as error:
            raise self._refusal(error) from None

    def close(self) -> None:
        """Closes the file; safe to call again."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.close(self._handle)
            self._handle = None

    def _begin(self, handle: int) -> None:
        """Before the first line: the file was perhaps there before, with a torn line at its end."""
        if hasattr(os, "fchmod"):
            os.fchmod(handle, 0o600)
        if self.torn:
            os.ftruncate(handle, self._whole)
            self.torn = b""
        self._begun = True

    def _lock(self) -> None:
        assert self._handle is not None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{self._what} is being written by another run.") from None
        except OSError:
            pass  # a file system without locks

    def _read(self) -> bytes:
        assert self._handle is not None
        with os.fdopen(os.dup(self._handle), "rb") as stream:
            stream.seek(0)
            return stream.read()

    def _refusal(self, error: OSError) -> UsageError:
        return UsageError(f"{self._what} cannot be written: {error.strerror or 'no access'}.")
