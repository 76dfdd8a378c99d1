"""Inputs: JSON Lines, CSV, or a folder of text files; checked as a whole, then read by record.

The check reads everything before a model loads and reports every wrong record with its number. Of
a checked input only the ids, offsets and SHA-256 of the records are kept, no text; a record is read
again when its turn comes, and its digest compared. Only a line feed ends a line: text may hold
other characters that some readers take for line ends.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import stat
import sys
from array import array
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from capt_local.batch import InputFormat
from capt_local.batch.records import (
    BatchRecord,
    InputChanged,
    MissingId,
    RecordParser,
    RecordSettings,
    TemplateFailed,
    requested_model,
)
from capt_local.decoding.options import GenerateOptions
from capt_local.errors import UsageError
from capt_local.prompting.messages import refuse_nul
from capt_local.strict_json import NotReadable, parse_object, size_text, utf8

WHAT = "The input"  # its name may be a patient's
LONGEST = 1 << 22  # bytes of a record
LARGEST_PIPE = 64 << 20  # bytes of an input that cannot be read again, so it is held in memory
_SHOWN = 20  # different problems that one error lists, and numbers listed for each
_MOST_COLUMNS = 1000
_PROGRESS_EVERY = 500  # records
_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv"}
# Names of columns that an error may list. A table without a header has patients' text there.
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,39}")
_WORD = re.compile(r"[a-z]+")
_ID_WORDS = frozenset(
    ("id", "ids", "ident", "identifier", "key", "nr", "num", "number", "mrn", "uid", "uuid", "guid")
)


class InputErrors(UsageError):
    """Records of the input are wrong; no model was loaded. The message is one line.

    Attributes:
        numbers: of the wrong records, by what is wrong with them.
    """

    def __init__(self, numbers: Mapping[str, Sequence[int]], problems: str) -> None:
        self.numbers = numbers
        super().__init__(
            f"{WHAT}: {problems}. No model was loaded. --skip-invalid runs the other records."
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes of one record.

    Attributes:
        number: of its first line (of a folder: of the file), from 1.
        start: offset in the input, in bytes (of a folder: index of the file).
        data: without the end of its last line.
        problem: why it cannot be read; None for a good one.
        cells: of a table row that was just read.
    """

    number: int
    start: int
    data: bytes
    problem: str | None = None
    cells: Sequence[str] | None = None


class JsonLines:
    """Lines of JSON objects.

    Args:
        source: a file, or the bytes of a pipe.
        longest: bytes of a record; a longer line is skipped without being held in memory.

    Attributes:
        digest: SHA-256 of what was read; of the whole input once `pieces` is exhausted.
        share: how much was read, 0 to 1.
        columns: names of the fields, where the input declares them.
    """

    format, unit = InputFormat.JSONL, "line"

    def __init__(self, source: Path | bytes, longest: int = LONGEST) -> None:
        self._source, self._longest = source, longest
        self._size = len(source) if isinstance(source, bytes) else source.stat().st_size
        self._hash = hashlib.sha256()
        self._offset = 0
        self.columns: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    @property
    def share(self) -> float:
        return min(1.0, self._offset / max(1, self._size))

    def stamp(self) -> object:
        """Another value when the file has been replaced or written to."""
        if isinstance(self._source, bytes):
            return None
        try:
            found = self._source.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def pieces(self) -> Iterator[Piece]:
        """The records in order. Raises OSError if the input cannot be read."""
        for line in self._lines():
            if line.problem is not None or line.data.strip():
                yield dataclasses.replace(line, data=_without_end(line.data))

    def fields(self, piece: Piece) -> dict[str, object]:
        """The fields of a record by name. Raises NotReadable."""
        return parse_object(piece.data, as_written=True)

    def read_again(self, start: int, size: int) -> bytes:
        """The bytes of a record as they are now. Raises OSError."""
        with self._open() as stream:
            stream.seek(start)
            return stream.read(size)

    def described(self) -> dict[str, str]:
        """What decides the fields of a record besides its bytes; holds no text of it."""
        return {}

    def _open(self) -> BinaryIO:
        if isinstance(self._source, bytes):
            return io.BytesIO(self._source)
        return self._source.open("rb")

    def _lines(self) -> Iterator[Piece]:
        """Each line with its line feed; a byte order mark in front of the first is left out."""
        self._hash, self._offset = hashlib.sha256(), 0
        number = 0
        with self._open() as stream:

            def read(size: int) -> bytes:
                data = stream.readline(size)
                self._hash.update(data)
                self._offset += len(data)
                return data

            while line := read(self._longest + 1):
                number += 1
                start = self._offset - len(line)
                if len(line) > self._longest and not line.endswith(b"\n"):
                    while (rest := read(1 << 16)) and not rest.endswith(b"\n"):
                        pass
                    yield Piece(number, start, b"", f"longer than {size_text(self._longest)}")
                    continue
                if number == 1 and line.startswith(BOM_UTF8):
                    start, line = start + len(BOM_UTF8), line.removeprefix(BOM_UTF8)
                yield Piece(number, start, line)


class CsvTable(JsonLines):
    """CSV as Python's `csv` reads it, quoted with "; the first row names the columns.

    A quoted cell may hold line feeds, so a row may be several lines.
    """

    format = InputFormat.CSV

    def __init__(
        self, source: Path | bytes, longest: int = LONGEST, delimiter: str | None = None
    ) -> None:
        super().__init__(source, longest)
        tabs = isinstance(source, Path) and source.suffix.lower() == ".tsv"
        self._delimiter = delimiter or ("\t" if tabs else ",")
        self._row: list[Piece] = []
        self._row_size = 0
        self._problem: str | None = None

    def pieces(self) -> Iterator[Piece]:
        """The rows. Raises UsageError if there is no header, or an unusable one."""
        rows = self._rows()
        header = next(rows, None)
        if header is None:
            raise UsageError(f"{WHAT} is empty; its first line must name the columns.")
        try:
            if header.problem is not None:
                raise NotReadable(header.problem)
            self.columns = _columns(self._cells(header), self._delimiter)
        except NotReadable as error:
            raise UsageError(f"{WHAT}, line {header.number}: {error}.") from None
        yield from rows

    def fields(self, piece: Piece) -> dict[str, object]:
        cells = self._cells(piece)
        if len(cells) != len(self.columns):
            raise NotReadable(
                f"it has {len(cells)} cells, and the first line has {len(self.columns)}"
            )
        return dict(zip(self.columns, cells, strict=True))

    def described(self) -> dict[str, str]:
        names = hashlib.sha256(json.dumps(self.columns).encode()).hexdigest()
        return {"delimiter": self._delimiter, "columns_sha256": names}

    def _rows(self) -> Iterator[Piece]:
        """The rows that are not blank; a wrong one has a problem."""
        reader = csv.reader(self._feed(), strict=True, delimiter=self._delimiter)
        more = True
        while more:
            self._row, self._row_size, self._problem, cells = [], 0, None, None
            try:
                with _long_cells(self._longest):
                    cells = next(reader, None)
                more = cells is not None
            except csv.Error:  # its message may hold a cell
                self._problem = self._problem or "not CSV (look at its quotation marks)"
            except NotReadable as error:
                self._problem, more = str(error), False
            if self._problem is not None or cells:
                first = self._row[0]
                data = _without_end(b"".join(line.data for line in self._row))
                yield Piece(first.number, first.start, data, self._problem, cells)

    def _feed(self) -> Iterator[str]:
        """Lines for the csv reader, which takes as many as a row has."""
        for line in self._lines():
            self._row.append(line)
            self._row_size += len(line.data)
            if line.problem is not None or self._row_size > self._longest:
                raise NotReadable(
                    f"a row of more than {size_text(self._longest)}, or a quotation mark that is "
                    "not closed; what follows it was not checked"
                )
            try:
                yield _cell_text(line.data)
            except NotReadable as error:
                self._problem = str(error)
                yield line.data.decode("utf-8", "surrogateescape")  # so the row's end is found

    def _cells(self, row: Piece) -> Sequence[str]:
        if row.cells is not None:
            return row.cells
        text = _cell_text(row.data)
        try:
            with _long_cells(len(text)):
                stream = io.StringIO(text, newline="")
                return next(csv.reader(stream, strict=True, delimiter=self._delimiter), [])
        except csv.Error:
            raise NotReadable("not CSV (look at its quotation marks)") from None


def _columns(names: Sequence[str], delimiter: str) -> tuple[str, ...]:
    if len(names) > _MOST_COLUMNS:
        raise NotReadable(f"more than {_MOST_COLUMNS} columns")
    if "" in names:
        raise NotReadable("a column has no name")
    if len(set(names)) < len(names):
        raise NotReadable("two columns have the same name")
    if len(names) == 1 and not (set(",;\t|") - {delimiter}).isdisjoint(names[0]):
        raise NotReadable("one column; say with --delimiter what separates the cells")
    return tuple(names)


def _cell_text(data: bytes) -> str:
    text = utf8(data)
    try:
        refuse_nul(text, "it")
    except UsageError as error:
        raise NotReadable(str(error).rstrip(".")) from None
    return text


@contextlib.contextmanager
def _long_cells(size: int) -> Iterator[None]:
    """Lets cells be longer than the 131,072 characters that `csv` allows by default."""
    before = csv.field_size_limit(max(size, 1 << 17))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _without_end(data: bytes) -> bytes:
    return data.removesuffix(b"\n").removesuffix(b"\r")


class Folder:
    """The files `*.txt` of a folder in the order of their names; its folders are not read.

    Attributes:
        ignored: how many other entries the folder has.
        digest, share, columns: see `JsonLines`; the digest is over names and SHA-256 of the files.

    Raises:
        OSError: it cannot be read.
    """

    format, unit = InputFormat.TXT_DIR, "file"
    columns: tuple[str, ...] = ()

    def __init__(self, path: Path, longest: int = LONGEST) -> None:
        self._path, self._longest = path, longest
        entries = os.listdir(path)
        self.names = _text_files(entries)
        self.ignored = len(entries) - len(self.names)
        self._hash = hashlib.sha256()
        self._done = 0

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    @property
    def share(self) -> float:
        return self._done / max(1, len(self.names))

    def stamp(self) -> object:
        """The names. Not the folder's times: an output written beside the files changes them."""
        try:
            return _text_files(os.listdir(self._path))
        except OSError:
            return None

    def pieces(self) -> Iterator[Piece]:
        self._hash, self._done = hashlib.sha256(), 0
        for index, name in enumerate(self.names):
            data, problem = b"", None
            try:
                data = self._read(name)
            except NotReadable as error:
                problem = str(error)
            except OSError as error:
                problem = f"cannot be read: {error.strerror or 'no access'}"
            self._hash.update(os.fsencode(name) + b"\0" + hashlib.sha256(data).digest())
            self._done += 1
            yield Piece(index + 1, index, data, problem)

    def fields(self, piece: Piece) -> dict[str, object]:
        text = utf8(piece.data).removeprefix("\ufeff")
        return {"id": self.names[piece.start], "note": text}

    def read_again(self, start: int, size: int) -> bytes:
        try:
            return self._read(self.names[start])
        except NotReadable:
            return b""

    def described(self) -> dict[str, str]:
        return {}

    def _read(self, name: str) -> bytes:
        path = self._path / name
        if path.is_symlink():  # it could name a file that the user does not mean to send
            raise NotReadable("a link; copy the file into the folder")
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise NotReadable("not a regular file")
            with open(handle, "rb", closefd=False) as stream:
                data = stream.read(self._longest + 1)
        finally:
            os.close(handle)
        if len(data) > self._longest:
            raise NotReadable(f"larger than {size_text(self._longest)}")
        return data


def _text_files(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in names if name.lower().endswith(".txt")))


class InputSource:
    """A checked input; records are read again by their index, 0 to `len(self) - 1`.

    Attributes:
        format: of the input.
        ids: of all records, in order; unique.
        digest: SHA-256 of the input.
        notices: sentences for the user.
        skipped: number and problem of each record that `skip_invalid` left out.
    """

    def __init__(self, reader: JsonLines | Folder, parser: RecordParser) -> None:
        """See `check_input`, which fills it."""
        self.format = reader.format
        self.digest = ""
        self.notices: list[str] = []
        self.skipped: list[tuple[int, str]] = []
        self._reader, self._parser = reader, parser
        self._index: dict[str, int] = {}
        self._places = array("Q")  # number, start, size of each record
        self._digests = bytearray()
        self._stamp = reader.stamp()

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, id: str) -> bool:
        return id in self._index

    def add(self, piece: Piece, id: str) -> None:
        """Adds the next record."""
        self._index[id] = len(self._index)
        self._places.extend((piece.number, piece.start, len(piece.data)))
        self._digests += hashlib.sha256(piece.data).digest()

    def number_of(self, id: str) -> int:
        """The number of the record with an id."""
        return self._place(self._index[id])[0]

    def size(self, index: int) -> int:
        """Bytes of a record."""
        return self._place(index)[2]

    def line(self, index: int) -> tuple[int, str]:
        """Number of a record, and SHA-256 of its bytes (hexadecimal), as of the check."""
        return self._place(index)[0], self._digests[32 * index : 32 * index + 32].hex()

    def lines(self) -> Iterator[tuple[int, str, str]]:
        """Number, id and SHA-256 of each record."""
        for index, id in enumerate(self._index):
            number, sha256 = self.line(index)
            yield number, id, sha256

    def _place(self, index: int) -> tuple[int, int, int]:
        if not 0 <= index < len(self._index):
            raise IndexError(index)
        number, start, size = self._places[3 * index : 3 * index + 3]
        return number, start, size

    def record(self, index: int) -> BatchRecord:
        """Reads a record again.

        Raises:
            InputChanged: its bytes are not those that were checked, or cannot be read.
            TemplateFailed: the template takes too much now.
            IndexError: there is no such record.
        """
        number, start, size = self._place(index)
        where = f"{WHAT}, {self._reader.unit} {number}"
        try:
            data = self._reader.read_again(start, size)
        except OSError as error:
            reason = error.strerror or "no access"
            raise InputChanged(f"{where}: it can no longer be read: {reason}.") from None
        digest = hashlib.sha256(data).hexdigest()
        if digest != self.line(index)[1]:
            raise InputChanged(f"{where}: it has changed since the input was checked.")
        try:
            return self._parser.parse(
                number, self._reader.fields(Piece(number, start, data)), digest
            )
        except NotReadable as error:
            raise TemplateFailed(f"{where}: {error}.") from None

    def changed(self) -> str | None:
        """A sentence if the input is not as it was at the check; None if it is."""
        if self._reader.stamp() == self._stamp:
            return None
        return f"{WHAT} has changed since it was checked; what was added to it was not read."

    def described(self) -> dict[str, Any]:
        """What decides the prompt of a record besides its bytes, for a fingerprint; no text."""
        return {
            "format": str(self.format),
            **self._reader.described(),
            **self._parser.described(),
        }


def check_input(
    path: Path,
    format: InputFormat | None = None,
    *,
    parser: RecordParser | None = None,
    delimiter: str | None = None,
    options: GenerateOptions | None = None,
    model: str | None = None,
    skip_invalid: bool = False,
    longest: int = LONGEST,
    largest_pipe: int = LARGEST_PIPE,
    progress: Callable[[float], None] | None = None,
    stdin: BinaryIO | None = None,
) -> InputSource:
    """Checks all of an input. Loads no model.

    Args:
        path: a file, a folder or a pipe; "-" is standard input.
        format: how records are written; None: by the name.
        parser: how their fields become prompts.
        delimiter: between the cells of a table; None: by the name.
        options: of the run; what a record sets for itself must go with them.
        model: that answers; a notice counts lines that name another one.
        skip_invalid: leaves wrong records out instead of refusing the input.
        longest: bytes of a record.
        largest_pipe: bytes of an input that cannot be read again, which is held in memory (a
            temporary file would leave patients' text on the disk).
        progress: called now and then with the share of the input that is checked.
        stdin: standard input; the process's own when None.

    Raises:
        UsageError: the input cannot be read, or holds no record.
        InputErrors: records of it are wrong; all were read.
    """
    parser, options = parser or RecordParser(), options or GenerateOptions()
    try:
        reader = _reader(path, format, delimiter, longest, largest_pipe, stdin)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise _unreadable(error) from None
    if isinstance(reader, Folder):
        if parser.id_field != "id":
            raise UsageError(
                "--id-field goes with JSON Lines and CSV; in a folder, names are the ids."
            )
        parser = dataclasses.replace(parser, prompt_field="note")
    source = InputSource(reader, parser)
    wrong: dict[str, list[int]] = {}
    keys: set[str] | None = None  # fields that all records without an id have
    other_models, accepted = 0, RecordSettings()
    pieces = reader.pieces()
    for count in range(sys.maxsize):
        try:
            piece = next(pieces, None)
        except OSError as error:
            raise _unreadable(error) from None
        if piece is None:
            break
        fields: dict[str, object] = {}
        try:
            if piece.problem is not None:
                raise NotReadable(piece.problem)
            fields = reader.fields(piece)
            record = parser.parse(piece.number, fields, "")
            if record.settings != accepted:
                record.settings.applied(options)
                accepted = record.settings
            if record.id in source:
                first = source.number_of(record.id)
                raise NotReadable(f"its id is that of {reader.unit} {first}")
        except (NotReadable, UsageError) as error:
            if isinstance(error, MissingId):
                keys = set(fields) if keys is None else keys & set(fields)
            wrong.setdefault(str(error).removesuffix("."), []).append(piece.number)
        else:
            source.add(piece, record.id)
            named = requested_model(fields) if record.custom_id is not None else None
            other_models += named is not None and named != model
        if progress is not None and count % _PROGRESS_EVERY == 0:
            progress(reader.share)
    if reader.stamp() != source._stamp:
        raise UsageError(f"{WHAT} was written to while it was checked. Run again when it is done.")
    source.digest = reader.digest
    if wrong:
        problems = _listed(wrong, reader.unit, _id_remedy(reader.columns, keys or set()))
        if not skip_invalid:
            raise InputErrors(wrong, problems)
        source.skipped = sorted((number, why) for why, each in wrong.items() for number in each)
        source.notices.append(f"left out of the run (--skip-invalid): {problems}.")
    if not len(source):
        raise UsageError(f"{WHAT} holds no {'valid ' if wrong else ''}record.")
    if other_models:
        source.notices.append(
            f"lines of the input that name another model: {other_models}. The models of this run "
            "answer them."
        )
    if isinstance(reader, Folder) and reader.ignored:
        source.notices.append(
            f"entries of the input folder that are not *.txt, and are not read: {reader.ignored}."
        )
    return source


def _listed(wrong: Mapping[str, Sequence[int]], unit: str, remedy: str) -> str:
    """Each problem once, with the records that have it: "lines 2, 5 and 498 more: not JSON"."""
    found = []
    for why, numbers in list(wrong.items())[:_SHOWN]:
        shown = ", ".join(map(str, numbers[:_SHOWN]))
        more = f" and {len(numbers) - _SHOWN} more" if numbers[_SHOWN:] else ""
        missing_id = why.startswith('no "id"') or "--id-field" in why
        units = f"{unit}{'s' if numbers[1:] else ''}"
        found.append(f"{units} {shown}{more}: {why}{remedy if missing_id else ''}")
    if rest := len(wrong) - _SHOWN:
        found += [f"and {rest} other problems"] if rest > 0 else []
    return "; ".join(found)


def _id_remedy(columns: Sequence[str], keys: set[str]) -> str:
    """What to do where records have no id, with the fields that look like one.

    Candidates are the columns of a table, or what all such records share, if all are plain names.
    Only names with a word such as "id" or "number" in them are listed: in a table without a header
    the others are the first patient's.
    """
    names = list(columns) or sorted(keys)
    likely = [name for name in names if not _ID_WORDS.isdisjoint(_WORD.findall(name.lower()))]
    if not likely or not all(_COLUMN.fullmatch(name) for name in names):
        return " (name the field that identifies a record with --id-field)"
    shown = ", ".join(likely[:_SHOWN]) + (", ..." if likely[_SHOWN:] else "")
    return f" (name the field that identifies a record with --id-field, such as {shown})"


def _reader(
    path: Path,
    format: InputFormat | None,
    delimiter: str | None,
    longest: int,
    largest_pipe: int,
    stdin: BinaryIO | None,
) -> JsonLines | Folder:
    piped = str(path) == "-"
    if format is None and piped:
        format = InputFormat.JSONL
    elif format is None and path.is_dir():
        format = InputFormat.TXT_DIR
    elif format is None:
        name = _FORMATS.get(path.suffix.lower())
        if name is None:
            raise UsageError(
                "The name of the input does not end in .jsonl, .ndjson, .csv or .tsv. Say what it "
                "is with --input-format jsonl, csv or txt-dir."
            )
        format = InputFormat(name)
    if delimiter is not None and format is not InputFormat.CSV:
        raise UsageError("--delimiter goes with CSV: --input-format csv.")
    if format is InputFormat.TXT_DIR:
        if piped or not path.is_dir():
            raise UsageError("--input-format txt-dir needs a folder.")
        return Folder(path, longest)
    source: Path | bytes = path
    if piped:
        source = _held(stdin or _standard_input(), largest_pipe)
    elif path.is_dir():
        raise UsageError(f"{WHAT} is a folder. For one of text files: --input-format txt-dir.")
    elif not path.is_file() and path.exists():
        with path.open("rb") as stream:
            source = _held(stream, largest_pipe)
    return (
        JsonLines(source, longest)
        if format is InputFormat.JSONL
        else CsvTable(source, longest, delimiter)
    )


def _held(stream: BinaryIO, largest: int) -> bytes:
    data = stream.read(largest + 1)
    if len(data) > largest:
        raise UsageError(
            f"{WHAT} comes through a pipe and is larger than {size_text(largest)}, which is "
            "what is held in memory. Give it as a file; no copy is written to the disk."
        )
    return data


def _standard_input() -> BinaryIO:
    stream = sys.stdin.buffer if sys.stdin is not None else None
    if stream is None or stream.isatty():
        raise UsageError("There is no input: '-' reads standard input, and that is a terminal.")
    return stream


def _unreadable(error: Exception) -> UsageError:
    reason = getattr(error, "strerror", None) or "no access"
    return UsageError(f"{WHAT} cannot be read: {reason}.")
