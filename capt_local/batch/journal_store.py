"""Lines in a file: added at its end, or all put anew at once; either is on the disk, or was not.

This file knows bytes, ids and the disk; what a run is stands in `journal`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from capt_local.batch.disk import NEW, Files, create, is_full, sibling, write_all
from capt_local.batch.journal_lines import Kept, Scan, read_line
from capt_local.batch.journal_place import WHAT, clear_leftovers
from capt_local.errors import UsageError


class JournalBroken(UsageError):
    """The output can no longer be written; what is told as safe is.

    Attributes:
        safe: how many records are on the disk.
    """

    def __init__(self, problem: str, safe: int) -> None:
        """Tells what to do next."""
        self.safe = safe
        records = "1 record is" if safe == 1 else f"{safe} records are"
        super().__init__(f"{problem} {records} safe; the same command goes on behind them.")


class JournalFull(JournalBroken):
    """There is no room left on the disk."""


class Store:
    """The lines of an output.

    Args:
        path: of the file.
        files: operations.
        stream: the file, open for reading and writing.
        found: what it holds; nothing behind its whole lines.

    Attributes:
        kept: the lines by the id of their records, in the order of the file.
    """

    def __init__(self, path: Path, files: Files, stream: io.FileIO, found: Scan) -> None:
        """Takes over the open file."""
        self._path, self._files, self._stream = path, files, stream
        self._size = found.whole
        self._broken: JournalBroken | None = None
        self.kept: dict[str, Kept] = found.kept

    def append(self, lines: Sequence[tuple[str, bytes, Kept]]) -> None:
        """Adds lines with one write and one fsync; they are on the disk when this returns.

        Args:
            lines: the id of a record that has none yet, its line with its end, and what is kept
                of it; its place is filled in here.

        Raises:
            JournalFull: there is no room. What was written of them is cut off again.
            JournalBroken: the disk fails, or something else has changed the file.
        """
        ids = {id for id, _, _ in lines}
        if len(ids) < len(lines) or not ids.isdisjoint(self.kept):
            raise ValueError("a record has a line already")
        self._check()
        try:
            self._stream.seek(self._size)
            write_all(self._files, self._stream, b"".join(line for _, line, _ in lines))
            self._files.fsync(self._stream)
        except BaseException as error:  # a second Ctrl-C too
            self._take_back(flush=isinstance(error, Exception))
            self.stop(error)
        for id, line, entry in lines:
            self.kept[id] = dataclasses.replace(entry, offset=self._size, length=len(line))
            self._size += len(line)

    def rewrite(self, wanted: Sequence[str]) -> None:
        """Makes the file hold these lines in this order, in one moment.

        Raises:
            JournalFull, JournalBroken: it holds what it held before, or already what is wanted.
        """
        self._check()
        new = sibling(self._path, NEW)
        kept: dict[str, Kept] = {}
        size = 0
        try:
            with create(self._files, new) as stream:
                for id in wanted:
                    line = read_line(self._stream, self.kept[id])
                    write_all(self._files, stream, line)
                    kept[id] = dataclasses.replace(self.kept[id], offset=size)
                    size += len(line)
                self._files.fsync(stream)
            self._stream.close()  # Windows renames no open file
            self._files.replace(new, self._path)
            self._files.sync_folder(self._path.parent)
            self._stream = self._files.open(self._path, os.O_RDWR)
        except BaseException as error:
            with contextlib.suppress(OSError):
                clear_leftovers(self._files, self._path)
            self.stop(error)
        self.kept, self._size = kept, size

    def stop(self, error: BaseException) -> NoReturn:
        """Raises why no line can be written any more, now and from now on."""
        full = isinstance(error, OSError) and is_full(error)
        kind = JournalFull if full else JournalBroken
        reason = (error.strerror if isinstance(error, OSError) else None) or "it was interrupted"
        problem = "The disk of the output (-o) is full" if full else f"{WHAT} failed: {reason}"
        self._broken = kind(f"{problem}.", len(self.kept))
        if isinstance(error, OSError):
            raise self._broken from None
        raise error

    def close(self) -> None:
        """Closes the file; safe to call again."""
        self._stream.close()

    def _check(self) -> None:
        """Refuses to go on with a file that failed, or that something else has changed."""
        if self._broken is not None:
            raise self._broken
        status = os.fstat(self._stream.fileno())
        try:
            same = os.path.samestat(status, os.stat(self._path, follow_symlinks=False))
        except OSError:
            same = False
        if same and status.st_size == self._size:
            return
        what = "changed by something else" if same else "moved or taken away"
        self._broken = JournalBroken(f"{WHAT} was {what} during the run.", len(self.kept))
        raise self._broken

    def _take_back(self, *, flush: bool) -> None:
        """Cuts off what was written of lines; where that fails too, the next run does it.

        Args:
            flush: whether the disk is waited for: not by who presses Ctrl-C a second time.
        """
        with contextlib.suppress(OSError):
            self._files.truncate(self._stream, self._size)
            if flush:
                self._files.fsync(self._stream)
