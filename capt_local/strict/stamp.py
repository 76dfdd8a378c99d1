"""What tells that a file is still the one that was looked at."""

from __future__ import annotations

import os
from typing import TypeAlias

# Device, inode, size, and the times of the last change of content and of anything at all, in
# nanoseconds. Whoever may write a file can set the first time back, but not the second.
Stamp: TypeAlias = tuple[int, int, int, int, int]


def stamp_of(found: os.stat_result) -> Stamp:
    """The stamp of a file, of what `os.stat` or `os.fstat` says of it."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
