"""Files that survive kills and full disks: append-only lines, and atomically written files.

The output of `batch` and the results of `eval` are such files. Lines that are appended together are
one write and one fsync; when `append` returns, neither a kill nor a power cut loses them. Files
have mode 0600 and are never opened through a link.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from capt_local.errors import UsageError
from capt_local.strict_json import open_regular

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NEW = "capt-new"  # suffix of a temporary file that is renamed


class DiskFailed(UsageError):
    """A file can no longer be written; lines whose `append` has returned are safe."""


class LineFile:
    """An open file of lines, locked by the kernel until it is closed or the process ends.

    Args:
        path: of the file.
        what: what errors call it; its name may be a patient's.
        create: whether it is made where it does not exist.
        write: whether it will be written to.

    Attributes:
        size: in bytes; only whole lines, once a torn end was cut off.
        locked: False on a file system without locks.

    Raises:
        UsageError: it is no regular file, or another process is writing it.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, what: str, *, create: bool = True, write: bool = True) -> None:
        self._path, self._what, self.locked = path, what, True
        self._failure: DiskFailed | None = None
        flags = (os.O_RDWR if write else os.O_RDONLY) | (os.O_CREAT if create else 0)
        while True:
            existed = os.path.lexists(path)
            self._handle = _open(path, flags)
            try:
                if not stat.S_ISREG(os.fstat(self._handle).st_mode):
                    raise UsageError(f"{what} is not a regular file. Name another one.")
                self._lock()
                # Another run may have replaced the file between opening and locking it.
                if _is_at(self._handle, path):
                    if not existed:
                        sync_folder(path.parent)
                    if write:  # what a kill left in the middle of `rewrite`
                        with contextlib.suppress(OSError):
                            os.unlink(_beside(path))
                    break
            except BaseException:
                os.close(self._handle)
                raise
            os.close(self._handle)
        self.size = os.fstat(self._handle).st_size

    def lines(self) -> Iterator[bytes]:
        """All lines with their ends; the last one may be torn."""
        os.lseek(self._handle, 0, os.SEEK_SET)
        with open(self._handle, "rb", closefd=False, buffering=1 << 20) as stream:
            yield from stream

    def tail(self, start: int) -> bytes:
        """The bytes from offset `start` on."""
        return os.pread(self._handle, self.size - start, start)

    def cut(self, size: int) -> None:
        """Truncates the file to `size` bytes, durably."""
        os.ftruncate(self._handle, size)
        os.fsync(self._handle)
        self.size = size

    def append(self, data: bytes) -> None:
        """Appends whole lines; they are on the disk when this returns.

        Raises:
            DiskFailed: the disk is full or fails, or something else has changed the file. What was
                written of them is cut off again, and nothing is written any more.
        """
        self._check_unchanged()
        try:
            if not self.size:
                os.fchmod(self._handle, 0o600)
            _write(self._handle, data, self.size)
            os.fsync(self._handle)
        except BaseException as error:  # a second Ctrl-C too
            with contextlib.suppress(OSError):  # where this fails, the next run cuts it
                os.ftruncate(self._handle, self.size)
                if isinstance(error, Exception):
                    os.fsync(self._handle)
            self._fail(error)
        self.size += len(data)

    def rewrite(self, lines: Iterable[bytes]) -> None:
        """Replaces the content by these lines atomically; if that fails, it is unchanged."""
        self._check_unchanged()
        try:
            handle = _put(self._path, lines)
        except BaseException as error:
            self._fail(error)
        os.close(self._handle)
        self._handle, self.size = handle, os.fstat(handle).st_size

    def sync(self) -> None:
        """Flushes what an earlier run wrote, and sets the mode to 0600."""
        os.fchmod(self._handle, 0o600)
        os.fsync(self._handle)

    def close(self) -> None:
        """Closes the file and releases the lock; safe to call again."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UsageError(f"{self._what} is being written by another run.") from None
            self.locked = False

    def _check_unchanged(self) -> None:
        if self._failure is not None:
            raise self._failure
        same = _is_at(self._handle, self._path)
        if not same or os.fstat(self._handle).st_size != self.size:
            what = "changed by something else" if same else "moved or removed"
            self._failure = DiskFailed(f"{self._what} was {what} during the run.")
            raise self._failure

    def _fail(self, error: BaseException) -> NoReturn:
        self._failure = disk_failed(self._what, error)
        if isinstance(error, OSError):
            raise self._failure from None
        raise error


def disk_failed(what: str, error: BaseException) -> DiskFailed:
    """The DiskFailed for an OSError or an interruption."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return DiskFailed(f"{what} cannot be written: its disk is full.")
    reason = (error.strerror if isinstance(error, OSError) else None) or "it was interrupted"
    return DiskFailed(f"{what} cannot be written: {reason}.")


def put(path: Path, data: bytes) -> None:
    """Writes `data` to a file atomically and durably."""
    os.close(_put(path, [data]))


def rename(old: Path, new: Path) -> None:
    """Renames a file durably."""
    os.replace(old, new)
    sync_folder(new.parent)


def read_file(path: Path, most: int) -> bytes | None:
    """The bytes of a regular file, None where there is none; never waits, as for a FIFO."""
    try:
        with open_regular(path, follow=False) as stream:
            return stream.read(most)
    except FileNotFoundError:
        return None


def sync_folder(folder: Path) -> None:
    """Flushes the entries of a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)


def _open(path: Path, flags: int) -> int:
    # Without O_NONBLOCK, a FIFO of that name would wait for its other end.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{_NEW}")


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


def _write(handle: int, data: bytes, offset: int) -> None:
    """Writes with one call, or with more where the system takes less at once."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(handle, rest, offset)
        if not written:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rest, offset = rest[written:], offset + written


def _put(path: Path, parts: Iterable[bytes]) -> int:
    """Writes a temporary file, flushes it and renames it to `path`; returns its handle."""
    beside = _beside(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(beside)
    handle = _open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        offset = 0
        for part in parts:
            _write(handle, part, offset)
            offset += len(part)
        os.fsync(handle)
        rename(beside, path)
    except BaseException:
        os.close(handle)
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    return handle
