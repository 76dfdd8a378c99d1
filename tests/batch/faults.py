"""Disks that fail: at the Nth operation of a kind, once or for good, or with the power."""

from __future__ import annotations

import errno
import io
import os
from collections import Counter
from pathlib import Path

from capt_local.batch.journal import Files

KINDS = ("open", "write", "fsync", "truncate", "replace", "unlink", "sync_folder")


class Quick(Files):
    """Does not wait for the disk, which takes most of the time of a test."""

    def fsync(self, stream: io.FileIO) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        pass


class Cut(BaseException):
    """The process is gone."""


class Faulty(Quick):
    """Lets operation number `at` of a kind fail; a write has done half of its work by then.

    Args:
        kind: of KINDS, or "any" to count all.
        at: from 1.
        code: error number; None kills the process instead.
        for_good: whether everything fails from then on.
    """

    def __init__(self, kind: str, at: int, code: int | None, *, for_good: bool = False) -> None:
        self.kind, self.at, self.code, self.for_good = kind, at, code, for_good
        self.count: Counter[str] = Counter()
        self.struck = False

    def _strikes(self, kind: str) -> bool:
        if self.struck and self.for_good:
            return True
        self.count[kind] += 1
        self.count["any"] += 1
        now = self.kind in (kind, "any") and self.count[self.kind] == self.at
        self.struck = self.struck or now
        return now

    def _fail(self) -> None:
        if self.code is None:
            self.for_good = True
            raise Cut
        raise OSError(self.code, os.strerror(self.code))

    def open(self, path: Path, flags: int) -> io.FileIO:
        if self._strikes("open"):
            self._fail()
        return super().open(path, flags)

    def write(self, stream: io.FileIO, data: memoryview) -> int:
        if self._strikes("write"):
            super().write(stream, data[: len(data) // 2])
            self._fail()
        return super().write(stream, data)

    def fsync(self, stream: io.FileIO) -> None:
        if self._strikes("fsync"):
            self._fail()
        super().fsync(stream)

    def truncate(self, stream: io.FileIO, size: int) -> None:
        if self._strikes("truncate"):
            self._fail()
        super().truncate(stream, size)

    def replace(self, old: Path, new: Path) -> None:
        if self._strikes("replace"):
            self._fail()
        super().replace(old, new)

    def unlink(self, path: Path) -> None:
        if self._strikes("unlink"):
            self._fail()
        super().unlink(path)

    def sync_folder(self, folder: Path) -> None:
        if self._strikes("sync_folder"):
            self._fail()
        super().sync_folder(folder)


class PowerCut(Faulty):
    """Forgets what was not flushed: contents without fsync, names without that of their folder."""

    def __init__(self, folder: Path, at: int) -> None:
        super().__init__("any", at, None)
        self._folder = folder
        self._contents: dict[int, bytes] = {}
        self._names: dict[str, int] = {}
        for path in folder.iterdir():
            self._contents[path.stat().st_ino] = path.read_bytes()
        self._know()

    def fsync(self, stream: io.FileIO) -> None:
        super().fsync(stream)
        status = os.fstat(stream.fileno())
        self._contents[status.st_ino] = os.pread(stream.fileno(), status.st_size, 0)

    def sync_folder(self, folder: Path) -> None:
        super().sync_folder(folder)
        self._know()

    def _know(self) -> None:
        self._names = {path.name: path.stat().st_ino for path in self._folder.iterdir()}

    def power_on(self) -> None:
        """What the disk holds after the cut."""
        for path in self._folder.iterdir():
            path.unlink()
        for name, inode in self._names.items():
            (self._folder / name).write_bytes(self._contents.get(inode, b""))


FULL, BROKEN = errno.ENOSPC, errno.EIO
