"""A file that is open from its check to the end of its loading, so that it stays the same one."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import NoReturn

from capt_local.errors import ModelError
from capt_local.llama.library import Closing
from capt_local.strict_json import Stamp, stamp_of

_HANDLES = Path("/proc/self/fd")  # Linux
_CHUNK = 1 << 20


class LockedFile(Closing):
    """A file that llama.cpp is to load.

    On Linux, llama.cpp is given the open file by its handle, so another one of the same name is
    never read. A file that other accounts may write could still change in place, even without a
    change of its times; llama.cpp gets a private copy of it, whose digest has to be the one that
    was checked. Elsewhere llama.cpp opens the file by its name; a change is found afterwards.

    Args:
        path: of the file.
        stamp: of the file that was checked; None where nobody has.

    Attributes:
        path: as given.
        place: where to open what is locked.
        sha256: of the private copy; None where the file itself is used.
        handle: the open file, for a process that inherits it.

    Raises:
        ModelError: it cannot be opened, or is not the one that was checked.
    """

    def __init__(self, path: Path, stamp: Stamp | None = None) -> None:
        """Opens it, and copies it where others may write it."""
        self.path = path
        self.sha256: str | None = None
        try:
            self.handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except FileNotFoundError:
            raise ModelError(f"{path.name}: there is no such model file.") from None
        except OSError as error:
            reason = error.strerror or "unreadable"
            raise ModelError(f"{path.name} cannot be read: {reason}.") from None
        try:
            self._stamp = stamp or stamp_of(os.fstat(self.handle))
            self.place = self._place()
            self.check()
            if self.place != path and others_may_write(os.fstat(self.handle)):
                self._copy()
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Whether the file is what it was.

        Raises:
            ModelError: it was changed, cut off, or another one has its name.
        """
        if self.sha256 is not None:
            return  # a copy that nobody else can reach
        try:
            found = [os.fstat(self.handle)]
            if self.place == self.path:
                found.append(os.stat(self.path))
        except OSError:
            found = []
        if not found or any(stamp_of(one) != self._stamp for one in found):
            self._refuse()

    def close(self) -> None:
        """Closes it; a private copy is gone with that."""
        os.close(self.handle)

    def _place(self) -> Path:
        by_handle = _HANDLES / str(self.handle)
        return by_handle if by_handle.exists() else self.path

    def _copy(self) -> None:
        digest = hashlib.sha256()
        try:
            with (
                os.fdopen(os.dup(self.handle), "rb", buffering=0) as source,
                tempfile.TemporaryFile(buffering=0) as copy,  # has no name, so nobody finds it
            ):
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    copy.write(chunk)
                os.dup2(copy.fileno(), self.handle, inheritable=False)
        except OSError as error:
            raise ModelError(
                f"{self.path.name} can be written by other accounts, so a private copy is loaded, "
                f"and that cannot be made: {error.strerror or 'unknown'}. Keep the file where only "
                "you can write, or make space in the folder for temporary files (TMPDIR)."
            ) from None
        self.sha256 = digest.hexdigest()
        if self._stamp.sha256 not in (None, self.sha256):
            self._refuse()

    def _refuse(self) -> NoReturn:
        raise ModelError(
            f"{self.path.name} changed between its check and its loading. Nothing of it is "
            "used: see who writes to that folder, then start again."
        )


def others_may_write(found: os.stat_result) -> bool:
    """Whether another account than this one and root may write a file.

    Where the system does not say whose a file is (Windows), nobody else may.
    """
    if not hasattr(os, "geteuid"):
        return False
    return found.st_uid not in (os.geteuid(), 0) or bool(
        found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
