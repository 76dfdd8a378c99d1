"""Digests that were computed before, so that a start does not read 15 GB again.

A digest is stored by path and stamp (device, inode, size, both times of change) in one private file
of the user. It is used only for files of installed bundles that nobody else may write, in folders
that nobody else may write; and the file of digests itself counts only if nobody else can have
written it. Where anything is odd, the file is read as if nothing were known.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from pathlib import Path

from platformdirs import user_state_dir

from capt_local.line_file import put
from capt_local.strict_json import NotReadable, Stamp, make_private_folder, parse_object

_FILE = "digests.json"
_MOST = 256  # entries; the oldest go first
_LARGEST = 1 << 20
_SETTLED = 2_000_000_000  # ns: a file that was changed just now may change again unnoticed
_DIGEST = re.compile(r"[0-9a-f]{64}")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ANY_OTHER = stat.S_IRWXG | stat.S_IRWXO


def state_folder() -> Path:
    """Where the program keeps what is no setting; it need not exist."""
    return Path(user_state_dir("capt-local", appauthor=False))


class DigestCache:
    """Digests by file; read once, written when one is added."""

    def __init__(self) -> None:
        """Reads the file if it is to be trusted."""
        self._place = state_folder() / _FILE
        self._entries = self._read()

    def find(self, path: Path, stamp: Stamp, about: str = "") -> str | None:
        """The digest of a file, if it is known and the file may be trusted to be the same.

        What is wanted is its own digest, or another one that is called `about`.
        """
        return self._entries.get(_key(path, stamp, about)) if is_private(path) else None

    def store(self, path: Path, stamp: Stamp, digest: str, about: str = "") -> None:
        """Stores a digest that was just computed; does nothing where that is not possible."""
        if not is_private(path) or time.time_ns() - stamp[4] < _SETTLED:
            return
        # Another process may have added some meanwhile.
        entries = self._read()
        key = _key(path, stamp, about)
        entries.pop(key, None)
        entries[key] = digest
        self._entries = dict(list(entries.items())[-_MOST:])
        with contextlib.suppress(OSError):
            self._write()

    def _read(self) -> dict[str, str]:
        with contextlib.suppress(OSError, NotReadable, ValueError):
            if not _ours(os.lstat(self._place.parent), _OTHERS_WRITE):
                return {}
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with open(os.open(self._place, flags), "rb") as file:
                found = os.fstat(file.fileno())
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and _ours(found, _ANY_OTHER):
                    entries = parse_object(file.read(_LARGEST))
                    return {
                        key: value
                        for key, value in entries.items()
                        if isinstance(value, str) and _DIGEST.fullmatch(value)
                    }
        return {}

    def _write(self) -> None:
        make_private_folder(self._place.parent)
        if _ours(os.lstat(self._place.parent), _OTHERS_WRITE):
            # Two processes may write at once, each a file of its own.
            part = self._place.with_name(f"{self._place.name}.{os.getpid()}")
            put(part, json.dumps(self._entries).encode())
            os.replace(part, self._place)


def is_private(path: Path) -> bool:
    """Whether nobody but this user and root may change a file, or put another in its place."""
    with contextlib.suppress(OSError):
        real = path.resolve()
        return all(_ours(os.lstat(one), _OTHERS_WRITE, root=True) for one in (real, real.parent))
    return False


def _ours(found: os.stat_result, forbidden: int, *, root: bool = False) -> bool:
    owners = {os.geteuid(), 0} if root else {os.geteuid()}
    return found.st_uid in owners and not found.st_mode & forbidden


def _key(path: Path, stamp: Stamp, about: str) -> str:
    # What was found out about a file holds where the bundle is moved to as well.
    return about + ":".join(map(str, stamp)) + ("" if about else f":{path.resolve()}")
