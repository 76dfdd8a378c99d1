"""Disks that fail: at the Nth operation of a kind, once or for good, or with the power."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from capt_local import line_file

KINDS = ("open", "pwrite", "fsync", "ftruncate", "replace", "unlink")
FULL, BROKEN = errno.ENOSPC, errno.EIO


class Cut(BaseException):
    """The process is gone."""


class Quick:
    """Stands for the module `os`; does not wait for the disk, which takes most of the time."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, handle: int) -> None:
        pass

    @contextlib.contextmanager
    def used(self) -> Iterator[Any]:
        """While the files of a journal are written by it."""
        with mock.patch.object(line_file, "os", self):
            yield self


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

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if name not in KINDS:
            return found

        def operation(*arguments: Any) -> Any:
            if self._strikes(name):
                if name == "pwrite":
                    handle, data, offset = arguments
                    os.pwrite(handle, data[: len(data) // 2], offset)
                if self.code is None:
                    self.for_good = True
                    raise Cut
                raise OSError(self.code, os.strerror(self.code))
            return self.done(name, found, arguments)

        return operation

    def fsync(self, handle: int) -> None:
        self.__getattr__("fsync")(handle)

    def done(self, name: str, operation: Any, arguments: tuple[Any, ...]) -> Any:
        """What an operation does that does not fail."""
        return None if name == "fsync" else operation(*arguments)

    def _strikes(self, kind: str) -> bool:
        if self.struck and self.for_good:
            return True
        self.count[kind] += 1
        self.count["any"] += 1
        now = self.kind in (kind, "any") and self.count[self.kind] == self.at
        self.struck = self.struck or now
        return now


class PowerCut(Faulty):
    """Forgets what was not flushed: contents without fsync, names without that of their folder."""

    def __init__(self, folder: Path, at: int) -> None:
        super().__init__("any", at, None)
        self._folder = folder
        self._contents = {path.stat().st_ino: path.read_bytes() for path in folder.iterdir()}
        self._names = {path.name: path.stat().st_ino for path in folder.iterdir()}

    def done(self, name: str, operation: Any, arguments: tuple[Any, ...]) -> Any:
        if name != "fsync":
            return operation(*arguments)
        status = os.fstat(arguments[0])
        if os.path.samestat(status, self._folder.stat()):
            self._names = {path.name: path.stat().st_ino for path in self._folder.iterdir()}
        else:
            self._contents[status.st_ino] = os.pread(arguments[0], status.st_size, 0)
        return None

    def power_on(self) -> None:
        """What the disk holds after the cut."""
        for path in self._folder.iterdir():
            path.unlink()
        for name, inode in self._names.items():
            (self._folder / name).write_bytes(self._contents.get(inode, b""))
