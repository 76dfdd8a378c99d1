"""Operations on files, one by one, so that a test can let each of them fail.

Files made here hold text of patients: mode 0600, never through a link, never over a file that is
there.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone stops at the drive's cache
_NO_SUCH_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOTTY)
# Without O_NONBLOCK, a pipe of that name would wait for its other end.
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_MODE = 0o600
# Of a file that is being written and then takes the place of another; no user names one like it.
NEW = "capt-new"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Files:
    """What is asked of the file system. Every method raises OSError as the system does."""

    def open(self, path: Path, flags: int) -> io.FileIO:
        """Opens a file without a buffer, for its owner alone if it is made."""
        handle = os.open(path, flags | _SAFE, _MODE)
        return io.FileIO(handle, "r+b" if flags & os.O_RDWR else "rb")

    def write(self, stream: io.FileIO, data: memoryview) -> int:
        """Writes once; returns how many bytes went out."""
        return stream.write(data) or 0

    def fsync(self, stream: io.FileIO) -> None:
        """Returns when the disk has what was written."""
        if fcntl is not None and _FULL_SYNC is not None:
            with contextlib.suppress(OSError):  # a drive or file system without it
                fcntl.fcntl(stream.fileno(), _FULL_SYNC)
                return
        os.fsync(stream.fileno())

    def truncate(self, stream: io.FileIO, size: int) -> None:
        """Cuts a file off."""
        stream.truncate(size)

    def replace(self, old: Path, new: Path) -> None:
        """Renames a file; one that has the new name is replaced in the same moment."""
        os.replace(old, new)

    def unlink(self, path: Path) -> None:
        """Takes a file away."""
        os.unlink(path)

    def sync_folder(self, folder: Path) -> None:
        """Returns when the disk knows which files the folder holds."""
        if os.name == "nt":  # folders cannot be opened there
            return
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in _NO_SUCH_SYNC:
                raise
        finally:
            os.close(handle)


def is_full(error: OSError) -> bool:
    """Whether the disk, a quota or a limit on the size of files is the reason."""
    return error.errno in _FULL


def create(files: Files, path: Path) -> io.FileIO:
    """Makes a new file for reading and writing, and lets the disk know of it.

    Raises:
        FileExistsError: there is one.
    """
    stream = files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        files.sync_folder(path.parent)
    except BaseException:
        stream.close()
        raise
    return stream


def write_all(files: Files, stream: io.FileIO, data: bytes) -> None:
    """Writes with one call; with more where the system takes less at once."""
    rest = memoryview(data)
    while rest:
        written = files.write(stream, rest)
        if not written:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rest = rest[written:]


def put(files: Files, path: Path, data: bytes) -> None:
    """Makes a file hold `data`, on the disk, whole or not at all; what was there is replaced."""
    beside = sibling(path, NEW)
    remove(files, beside)
    try:
        with create(files, beside) as stream:
            write_all(files, stream, data)
            files.fsync(stream)
        files.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            files.unlink(beside)
        raise
    files.sync_folder(path.parent)


def remove(files: Files, path: Path) -> None:
    """Takes a file away if it is there."""
    with contextlib.suppress(FileNotFoundError):
        files.unlink(path)


def sibling(path: Path, ending: str) -> Path:
    """The path beside a file whose name has one more ending."""
    return path.with_name(f"{path.name}.{ending}")


def unused(path: Path, word: str) -> Path:
    """The first of `path`.WORD-1, `path`.WORD-2, ... that is not there."""
    number = 1
    while os.path.lexists(found := sibling(path, f"{word}-{number}")):
        number += 1
    return found
