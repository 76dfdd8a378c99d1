"""A file that is open from its check to the end of its loading, so that it stays the same one."""

from __future__ import annotations

import os
from pathlib import Path

from capt_local.engine.closing import Closing
from capt_local.errors import ModelError
from capt_local.strict.stamp import Stamp, stamp_of

_HANDLES = Path("/proc/self/fd")  # Linux


class HeldFile(Closing):
    """A file that llama.cpp is to load.

    On Linux, llama.cpp is given the open file by its handle, so another one of the same name is
    never read. Elsewhere it opens the file by its name; a change is found behind that.

    Args:
        path: of the file.
        stamp: of the file that was checked; None where nobody has.

    Attributes:
        path: as given.
        place: where to open what is held.

    Raises:
        ModelError: it cannot be opened, or is not the one that was checked.
    """

    def __init__(self, path: Path, stamp: Stamp | None = None) -> None:
        """Opens it."""
        self.path = path
        try:
            self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except FileNotFoundError:
            raise ModelError(f"{path.name}: there is no such model file.") from None
        except OSError as error:
            reason = error.strerror or "unreadable"
            raise ModelError(f"{path.name} cannot be read: {reason}.") from None
        self._stamp = stamp or stamp_of(os.fstat(self._handle))
        by_handle = _HANDLES / str(self._handle)
        self.place: Path = by_handle if by_handle.exists() else path
        try:
            self.check()
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Whether the file is what it was.

        Raises:
            ModelError: it was changed, cut off, or another one has its name.
        """
        try:
            found = [os.fstat(self._handle)]
            if self.place == self.path:
                found.append(os.stat(self.path))
        except OSError:
            found = []
        if not found or any(stamp_of(one) != self._stamp for one in found):
            raise ModelError(
                f"{self.path.name} changed between its check and its loading. Nothing of it is "
                "used: see who writes to that folder, then start again."
            )

    def close(self) -> None:
        """Lets go of it."""
        os.close(self._handle)
