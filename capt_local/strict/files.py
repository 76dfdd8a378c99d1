"""Whole files, and bytes as text."""

from __future__ import annotations

import errno
import os
import stat
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path
from typing import BinaryIO

from capt_local.errors import UsageError
from capt_local.strict.problems import NotReadable

LARGEST = 64 << 20


def read_bytes(path: Path, what: str, *, largest: int = LARGEST, pipes: bool = False) -> bytes:
    """The bytes of a file, without the mark that some programs put in front of UTF-8.

    Args:
        path: of the file.
        what: what errors call it; its name may be a patient's.
        largest: bytes that it may have; not one more is kept of a longer one.
        pipes: whether it may be a pipe, which is waited for.

    Raises:
        UsageError: it cannot be read, or is too large.
    """
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or (pipes and not stat.S_ISDIR(mode))):
            raise UsageError(f"{what} cannot be read: it is not a file.")
        with open(path, "rb") as stream:
            data = stream.read(largest + 1)
    except FileNotFoundError:
        raise UsageError(f"{what} cannot be read: there is no such file.") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or "no access"
        raise UsageError(f"{what} cannot be read: {reason}.") from None
    if len(data) > largest:
        raise UsageError(f"{what} is larger than {size_text(largest)}.")
    return data.removeprefix(BOM_UTF8)


def size_text(count: int) -> str:
    """A number of bytes as people say it."""
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


def utf8(data: bytes) -> str:
    """Bytes as text.

    Raises:
        NotReadable: they are not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        # The error itself holds the bytes.
        other = " (UTF-16?)" if data.startswith((BOM_UTF16_BE, BOM_UTF16_LE)) else ""
        raise NotReadable(f"not UTF-8 at byte {error.start}{other}") from None


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """A regular file, for reading; a pipe or device is refused at once instead of waited for.

    Args:
        path: of the file.
        follow: whether it may be a symbolic link.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    safe = getattr(os, "O_NONBLOCK", 0) | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    try:
        stream = open(  # noqa: SIM115 - the caller closes it
            path, "rb", opener=lambda name, flags: os.open(name, flags | safe)
        )
    except ValueError:  # a name with a zero byte
        raise OSError(errno.EINVAL, "it has an impossible name") from None
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "it is not a file")
    return stream


def read_regular(path: Path, most: int) -> bytes:
    """The first bytes of a regular file.

    Raises:
        OSError: see `open_regular`.
    """
    with open_regular(path) as stream:
        return stream.read(most)


def make_private_folder(folder: Path) -> None:
    """Makes a folder and those above it that are missing, each with mode 0700 whatever the umask.

    Raises:
        OSError: one cannot be made.
    """
    missing = []
    for each in (folder, *folder.parents):
        if each.is_dir():
            break
        missing.append(each)
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
