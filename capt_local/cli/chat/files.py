"""The files that commands of a chat name. Errors never repeat a name: it may be a patient's."""

from __future__ import annotations

from pathlib import Path

from capt_local.chat.complete import path_of
from capt_local.errors import UsageError


def named(rest: str, command: str) -> Path:
    """The path that stands behind a command.

    Raises:
        UsageError: none does, or it can be no path.
    """
    if not rest:
        raise UsageError(f"{command} needs the name of a file.")
    try:
        path = path_of(rest)
        path.exists()  # not a name at all, such as one that is too long
    except (OSError, ValueError, RuntimeError):
        raise UsageError(f"{command} cannot use that name. Give another one.") from None
    return path


def file_bytes(rest: str, command: str, largest: int) -> bytes:
    """The bytes of the file that stands behind a command.

    Raises:
        UsageError: there is no such file, it cannot be read or is larger than `largest` bytes.
    """
    path = named(rest, command)
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{command} needs a regular file.")
        if path.stat().st_size > largest:
            raise UsageError(f"The file is larger than {largest >> 20} MiB.")
        return path.read_bytes()
    except OSError as error:
        # The name is not repeated: people name files after patients.
        raise UsageError(f"The file cannot be read: {error.strerror}.") from None
