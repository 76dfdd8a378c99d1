"""An input in pieces, each the bytes of one record with its place, none kept.

Only a line feed ends a line: text may hold other characters that some readers take for line ends.
"""

from __future__ import annotations

import hashlib
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from capt_local.strict.files import size_text

LONGEST = 1 << 22  # bytes of a record
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes of a record.

    Attributes:
        number: of its first line, from 1.
        start: where it begins in the input, in bytes.
        data: without the end of its last line.
        problem: why it cannot be read; None for a good one.
        cells: of a row that was just read; they can be had from `data` again.
    """

    number: int
    start: int
    data: bytes
    problem: str | None = None
    cells: Sequence[str] | None = None


class LineReader:
    """The lines of a stream, as they stand there, with what all of them together are.

    Args:
        stream: at its beginning.
        longest: bytes of a line; a longer one is passed over without being kept.

    Attributes:
        place: bytes that have been read.
    """

    def __init__(self, stream: BinaryIO, longest: int = LONGEST) -> None:
        """Reads nothing yet."""
        self._stream = stream
        self.longest = longest
        self._hash = hashlib.sha256()
        self.place = 0

    @property
    def digest(self) -> str:
        """SHA-256 of what has been read."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[Piece]:
        """Each line with its line feed; the mark in front of the first is left out.

        Raises:
            OSError: the stream cannot be read.
        """
        number = 0
        while line := self._read(self.longest + 1):
            number += 1
            start = self.place - len(line)
            if len(line) > self.longest and not line.endswith(b"\n"):
                self._skip()
                yield Piece(number, start, b"", f"longer than {size_text(self.longest)}")
                continue
            if number == 1 and line.startswith(BOM_UTF8):
                start += len(BOM_UTF8)
            yield Piece(number, start, line[start - self.place + len(line) :])

    def _read(self, size: int) -> bytes:
        data = self._stream.readline(size)
        self._hash.update(data)
        self.place += len(data)
        return data

    def _skip(self) -> None:
        while (data := self._read(_BLOCK)) and not data.endswith(b"\n"):
            pass


def without_end(data: bytes) -> bytes:
    """A line without its line feed, and without the carriage return in front of it."""
    return data.removesuffix(b"\n").removesuffix(b"\r")
