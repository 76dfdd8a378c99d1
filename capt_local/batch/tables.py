"""CSV as the standard library reads it, row by row, with the bytes of each row.

Separated by commas unless the user says otherwise, quoted with ", and the first row names the
columns. A quoted cell may hold line feeds, so a row may be several lines.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence

from capt_local.batch.pieces import LineReader, Piece, without_end
from capt_local.errors import UsageError
from capt_local.strict.files import size_text, utf8
from capt_local.strict.problems import NotReadable

COMMA = ","
_OTHERS = ";\t|"
_MOST_COLUMNS = 1000
_QUOTING = "not CSV (look at its quotation marks)"


class Rows:
    """The rows of a table behind its header.

    Args:
        lines: of the file.
        what: how errors call the file.
        delimiter: between two cells.

    Attributes:
        names: of the columns.

    Raises:
        UsageError: there is no header, or a poor one.
    """

    def __init__(self, lines: LineReader, what: str, delimiter: str = COMMA) -> None:
        """Reads the header."""
        self._longest = lines.longest
        self._lines = iter(lines)
        self._row: list[Piece] = []
        self._wrong: str | None = None
        self._left = lines.longest
        self._reader = csv.reader(self._feed(), strict=True, delimiter=delimiter)
        header = next(self._pieces(), None)
        if header is None:
            raise UsageError(f"{what} is empty; its first line must name the columns.")
        try:
            if header.problem is not None:
                raise NotReadable(header.problem)
            self.names = _header(cells_of(header, delimiter), delimiter)
        except NotReadable as error:
            raise UsageError(f"{what}, line {header.number}: {error}.") from None

    def __iter__(self) -> Iterator[Piece]:
        """The rows, blank lines left out; a wrong one has a problem.

        Raises:
            OSError: the stream cannot be read.
        """
        return self._pieces()

    def _pieces(self) -> Iterator[Piece]:
        ended = False
        while not ended:
            self._row, self._left, self._wrong = [], self._longest, None
            cells = None
            try:
                cells = self._next()
                ended = cells is None
            except csv.Error:
                # The message may hold a cell.
                self._wrong = self._wrong or _QUOTING
            except NotReadable as error:
                self._wrong, ended = str(error), True
            if self._wrong is not None or cells:
                yield self._piece(cells)

    def _next(self) -> list[str] | None:
        with _long_cells(self._longest):
            return next(self._reader, None)

    def _piece(self, cells: Sequence[str] | None) -> Piece:
        first = self._row[0]
        data = without_end(b"".join(line.data for line in self._row))
        return Piece(first.number, first.start, data, self._wrong, cells)

    def _feed(self) -> Iterator[str]:
        """Lines for the reader, which takes as many as a row has."""
        for line in self._lines:
            self._row.append(line)
            self._left -= len(line.data)
            if line.problem is not None or self._left < 0:
                raise NotReadable(
                    f"a row of more than {size_text(self._longest)}, or a quotation mark that is "
                    "not closed; what stands behind it was not checked"
                )
            try:
                yield _text(line.data)
            except NotReadable as error:
                self._wrong = str(error)
                # The end of the row is found nevertheless.
                yield line.data.decode("utf-8", "surrogateescape")


def fields_of(cells: Sequence[str], names: Sequence[str]) -> dict[str, object]:
    """The fields of a row.

    Args:
        cells: of the row.
        names: of the columns.

    Raises:
        NotReadable: there are more cells or fewer.
    """
    if len(cells) != len(names):
        raise NotReadable(f"it has {len(cells)} cells, and the first line has {len(names)}")
    return dict(zip(names, cells, strict=True))


def cells_of(row: Piece, delimiter: str = COMMA) -> Sequence[str]:
    """The cells of a row.

    Args:
        row: as it was read.
        delimiter: between two cells.

    Raises:
        NotReadable: it is none.
    """
    if row.cells is not None:
        return row.cells
    text = _text(row.data)
    try:
        with _long_cells(len(text)):
            reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
            return next(reader, [])
    except csv.Error:
        raise NotReadable(_QUOTING) from None


def _header(names: Sequence[str], delimiter: str) -> tuple[str, ...]:
    if len(names) > _MOST_COLUMNS:
        raise NotReadable(f"more than {_MOST_COLUMNS} columns")
    if "" in names:
        raise NotReadable("a column has no name")
    if len(set(names)) < len(names):
        raise NotReadable("two columns have the same name")
    others = set(_OTHERS + COMMA) - {delimiter}
    if len(names) == 1 and not others.isdisjoint(names[0]):
        raise NotReadable("one column; say with --delimiter what stands between the cells")
    return tuple(names)


def _text(data: bytes) -> str:
    text = utf8(data)
    if "\0" in text:
        raise NotReadable("it holds a zero character (NUL)")
    return text


@contextlib.contextmanager
def _long_cells(size: int) -> Iterator[None]:
    """Lets cells be longer than the 131,072 characters that the library allows."""
    before = csv.field_size_limit(max(size, 1 << 17))
    try:
        yield
    finally:
        csv.field_size_limit(before)
