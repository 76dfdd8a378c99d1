"""A transcript that grows while a conversation goes on: what was said is on the disk at once."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from capt_local.errors import UsageError


class TranscriptFile:
    """A new file of mode 0600 to which whole lines are added.

    Args:
        path: where no file may be yet.

    Raises:
        UsageError: there is one, or the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        """Makes the file, so that a bad place is found before anything is loaded."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        try:
            self._file = io.FileIO(os.open(path, flags, 0o600), "wb")
        except FileExistsError:
            raise UsageError("The --transcript file is there already. Name a new one.") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "that is no file name"
            raise UsageError(f"The --transcript file cannot be made: {reason}.") from None
        self._path = path
        self._safe = 0  # bytes of whole lines
        self._waiting: list[str] = []

    def add(self, *lines: str) -> None:
        """Writes lines, and those that could not be written before.

        Raises:
            UsageError: the disk is full or has gone. Whole lines that were there stay, and these
                are kept for the next time.
        """
        self._waiting += lines
        data = "".join(f"{line}\n" for line in self._waiting).encode()
        try:
            self._write(data)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._safe)
            raise UsageError(
                f"The transcript cannot be written: {error.strerror}. It is tried again with the "
                "next turn; /save writes the conversation elsewhere."
            ) from None
        self._safe += len(data)
        self._waiting.clear()

    def is_at(self, path: Path) -> bool:
        """Whether a path leads to this file."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), path.stat())
        except OSError:
            return False

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def discard(self) -> None:
        """Closes the file and takes it away: nothing was said."""
        if self.is_at(self._path):
            with contextlib.suppress(OSError):
                self._path.unlink()
        self.close()

    def _write(self, data: bytes) -> None:
        # Half a line of an earlier time would make the rest unreadable.
        self._file.seek(self._safe)
        self._file.truncate()
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
        os.fsync(self._file.fileno())
