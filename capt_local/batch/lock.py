"""One run at a time on one output.

The lock is the kernel's, on a file beside the output: it ends with the process, however that ends,
so a killed run never leaves a lock that has to be removed by hand. It is not on the output itself,
which is replaced at times.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import time
from pathlib import Path

from capt_local.batch.disk import Files, sibling
from capt_local.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_PATIENCE = 30.0  # seconds
_ENDING = "capt-lock"
NO_LOCKS = (
    "This file system has no locks: nothing keeps a second run from writing to the same output."
)


class Lock:
    """Holds the lock of an output from its making until `close`.

    Args:
        path: of the output.
        files: operations.
        what: what errors call the output.

    Attributes:
        notice: what the user should know, or "".

    Raises:
        UsageError: another process holds it.
        OSError: the folder cannot be written.
    """

    def __init__(self, path: Path, files: Files, what: str) -> None:
        """Takes the lock, or refuses at once."""
        self._path = sibling(path, _ENDING)
        self._files = files
        self.notice = ""
        self._stream = self._taken(what)

    def _taken(self, what: str) -> io.FileIO:
        while True:
            stream = self._files.open(self._path, os.O_RDWR | os.O_CREAT)
            try:
                self._lock(stream, what)
                # The run before may have taken the file away between opening and locking it.
                if _is_at(stream, self._path):
                    return stream
            except BaseException:
                stream.close()
                raise
            stream.close()

    def _lock(self, stream: io.FileIO, what: str) -> None:
        try:
            _lock(stream)
        except OSError as error:
            if error.errno in _HELD:
                raise UsageError(f"{what} is being written by another run.") from None
            self.notice = NO_LOCKS

    def close(self) -> None:
        """Gives the lock back; safe to call again."""
        if self._stream.closed:
            return
        if os.name != "nt" and not self.notice:  # else somebody else may be using it
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self._stream.close()
        if os.name == "nt":
            with contextlib.suppress(OSError):
                os.unlink(self._path)


def in_use(path: Path) -> bool:
    """Whether another process holds the lock of an output; makes no file."""
    try:
        stream = sibling(path, _ENDING).open("rb", buffering=0)
    except OSError:  # mostly, there is none
        return False
    with stream:
        try:
            _lock(stream)
        except OSError as error:
            return error.errno in _HELD
    return False


def wait_for_lock(stream: io.FileIO, what: str) -> bool:
    """Locks an open file until it is closed; waits for others, which hold it for moments alone.

    Args:
        stream: open for writing.
        what: what errors call the file.

    Returns:
        Whether it is locked; a file system without locks locks nothing.

    Raises:
        UsageError: another process keeps it.
    """
    ends = time.monotonic() + _PATIENCE
    while True:
        try:
            _lock(stream)
        except OSError as error:
            if error.errno not in _HELD:
                return False
            if time.monotonic() > ends:
                raise UsageError(f"{what} is being kept by another process.") from None
            time.sleep(0.02)
        else:
            return True


def _is_at(stream: io.FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(stream: io.FileIO) -> None:
    if fcntl is not None:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt  # type: ignore[unreachable, unused-ignore]

    msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
