"""The forms of an input: JSON Lines, a table, or a folder of text files.

Each gives the pieces of its records in order, tells what fields a piece holds, and can read the
bytes of a piece again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Protocol

from capt_local.batch.pieces import LONGEST, LineReader, Piece, without_end
from capt_local.batch.tables import COMMA, Rows, cells_of, fields_of
from capt_local.errors import UsageError
from capt_local.strict.json import parse_object

WHAT = "The input"  # its name may be a patient's
_NAMES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv"}


class InputFormat(StrEnum):
    """How records are written."""

    JSONL = "jsonl"
    CSV = "csv"
    TXT_DIR = "txt-dir"

    @classmethod
    def of(cls, path: Path | None) -> InputFormat:
        """The format of an input by its name; standard input has JSON Lines.

        Raises:
            UsageError: the name does not say.
        """
        if path is None:
            return cls.JSONL
        if path.is_dir():
            return cls.TXT_DIR
        found = _NAMES.get(path.suffix.lower())
        if found is None:
            raise UsageError(
                "The name of the input does not end in .jsonl, .ndjson, .csv or .tsv. Say what it "
                "is with --input-format jsonl, csv or txt-dir."
            )
        return cls(found)


def delimiter_of(path: Path) -> str:
    """What stands between the cells of a table by its name."""
    return "\t" if path.suffix.lower() == ".tsv" else COMMA


class Store(Protocol):
    """Where the bytes of an input are."""

    size: int

    def stamp(self) -> object:
        """Something that is another one when the bytes have been changed."""

    def open(self) -> BinaryIO:
        """The bytes from the beginning; OSError if they cannot be read."""


class FileStore:
    """A file that can be read again.

    Attributes:
        size: in bytes, when it was opened first.

    Args:
        path: of it.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size

    def stamp(self) -> object:
        """Which file it is, its size and when it was written."""
        return stamp_of(self._path)

    def open(self) -> BinaryIO:
        """The file; OSError if it cannot be read."""
        return self._path.open("rb")


def stamp_of(path: Path) -> object:
    """Which file or folder it is, its size and when it was written; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class MemoryStore:
    """Bytes that came through a pipe and are kept.

    Attributes:
        size: of them.

    Args:
        data: all of them.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def stamp(self) -> object:
        """Bytes in memory do not change."""
        return None

    def open(self) -> BinaryIO:
        """A view of the bytes."""
        return io.BytesIO(self._data)


class Input(Protocol):
    """An input of one form.

    Attributes:
        kind: which.
        what: how errors call it.
        unit: how they call what is counted in it.
        digest: SHA-256 of it, once all pieces were read.
        share: how much of it has been read, 0 to 1.
    """

    kind: InputFormat
    what: str
    unit: str

    @property
    def digest(self) -> str:
        """See above."""

    @property
    def share(self) -> float:
        """See above."""

    def stamp(self) -> object:
        """Something that is another one when the input has been changed."""

    def pieces(self) -> Iterator[Piece]:
        """The records in order. OSError if it cannot be read, UsageError if it is another form."""

    def fields(self, piece: Piece) -> dict[str, object]:
        """What a piece holds. NotReadable if it is none of this form."""

    def again(self, start: int, size: int) -> bytes:
        """The bytes of a piece as they are now. OSError if they cannot be read."""

    def how(self) -> dict[str, str]:
        """What decides the fields of a piece besides its bytes; no text of it."""


class Lines:
    """JSON Lines; see `Input`."""

    kind = InputFormat.JSONL
    unit = "line"

    def __init__(self, store: Store, what: str, longest: int = LONGEST) -> None:
        """Reads nothing yet."""
        self.what = what
        self._store = store
        self._longest = longest
        self._reader = LineReader(io.BytesIO())

    @property
    def digest(self) -> str:
        """See `Input`."""
        return self._reader.digest

    @property
    def share(self) -> float:
        """See `Input`."""
        return min(1.0, self._reader.place / max(1, self._store.size))

    def stamp(self) -> object:
        """See `Input`."""
        return self._store.stamp()

    def pieces(self) -> Iterator[Piece]:
        """The lines that hold more than white space."""
        with self._store.open() as stream:
            self._reader = LineReader(stream, self._longest)
            yield from self._records(self._reader)

    def _records(self, lines: LineReader) -> Iterator[Piece]:
        for line in lines:
            if line.problem is not None or line.data.strip():
                yield Piece(line.number, line.start, without_end(line.data), line.problem)

    def fields(self, piece: Piece) -> dict[str, object]:
        """The members of an object."""
        return parse_object(piece.data, as_written=True)

    def again(self, start: int, size: int) -> bytes:
        """Reads the bytes at a place."""
        with self._store.open() as stream:
            stream.seek(start)
            return stream.read(size)

    def how(self) -> dict[str, str]:
        """Nothing does."""
        return {}


class Table(Lines):
    """CSV; see `Input`.

    Args:
        store: where its bytes are.
        what: how errors call it.
        longest: bytes that a row may have.
        delimiter: between two cells.
    """

    kind = InputFormat.CSV

    def __init__(
        self, store: Store, what: str, longest: int = LONGEST, delimiter: str = COMMA
    ) -> None:
        """Reads nothing yet."""
        super().__init__(store, what, longest)
        self._delimiter = delimiter
        self._names: tuple[str, ...] = ()

    def _records(self, lines: LineReader) -> Iterator[Piece]:
        rows = Rows(lines, self.what, self._delimiter)
        self._names = rows.names
        yield from rows

    def fields(self, piece: Piece) -> dict[str, object]:
        """The cells of a row by the names of their columns."""
        return fields_of(cells_of(piece, self._delimiter), self._names)

    def how(self) -> dict[str, str]:
        """What divides a row, and the digest of the names of its columns."""
        names = hashlib.sha256(json.dumps(self._names).encode()).hexdigest()
        return {"delimiter": self._delimiter, "columns_sha256": names}
