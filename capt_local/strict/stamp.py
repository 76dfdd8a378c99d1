"""What shows that a file is still the one that was checked."""

from __future__ import annotations

import os


class Stamp(tuple[int, int, int, int, int]):
    """Device, inode, size, and the times of the last change of content and of anything at all (ns).

    Whoever may write a file can set the first time back, but not the second. A write through a
    shared mapping may change content and no time, so where other accounts may write a file, its
    digest is compared too (see `engine.locked_file`).

    Attributes:
        sha256: of the content that was checked, where somebody has computed it; two stamps are
            equal whatever it is.
    """

    sha256: str | None = None

    def with_digest(self, sha256: str | None) -> Stamp:
        """The same stamp of a content that was read."""
        found = Stamp(self)
        found.sha256 = sha256
        return found


def stamp_of(found: os.stat_result) -> Stamp:
    """The stamp of a file, of what `os.stat` or `os.fstat` says of it."""
    return Stamp((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
