"""Writing an answer to a file: whole or not at all, and readable by its owner alone."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from capt_local.errors import UsageError


class OutputFile:
    """A file that is written at the end, but whose place is tried out before.

    Args:
        path: of the file. What is there already is replaced when the answer is complete.
        name: of the file in errors: what the user calls it, never its path.

    Raises:
        UsageError: the file cannot be written there. Nothing has been computed yet.
    """

    def __init__(self, path: Path, name: str = "The output (-o)") -> None:
        """Makes and removes an empty file beside `path`, to find out now and not at the end."""
        self._path = path
        self._name = name
        try:
            regular = path.is_file() or not path.exists()
        except OSError as error:  # such as a name that is too long
            raise self._refusal(error) from None
        if not regular:
            raise UsageError(f"{name} is not a regular file. Name another one.")
        os.unlink(self._new_file())

    def write(self, text: str) -> None:
        """Writes the file in one go: beside its place, flushed to the disk, then renamed.

        Raises:
            UsageError: the disk is full or the folder has gone; what was there before is intact.
        """
        temporary = self._new_file()
        try:
            with open(temporary, "w", encoding="utf-8", newline="") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, self._path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, OSError):
                raise self._refusal(error) from None
            raise

    def _new_file(self) -> str:
        """An empty file of mode 0600 in the folder of the output."""
        try:
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".capt-local-")
        except OSError as error:
            raise self._refusal(error) from None
        os.close(handle)
        return name

    def _refusal(self, error: OSError) -> UsageError:
        return UsageError(f"{self._name} cannot be written: {error.strerror}. Nothing was written.")
