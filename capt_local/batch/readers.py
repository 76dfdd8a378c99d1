"""Inputs: JSON Lines, CSV, or a folder of documents; checked as a whole, then read by record.

The check reads everything before a model loads and reports every wrong record with its number. Of
a checked input only the ids, offsets and SHA-256 of the records stay in memory, no text; a record
is read again when its turn comes, and its digest compared. Only a line feed ends a line: text may
hold other characters that some readers take for line ends.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from capt_local.batch.records import (
    LONGEST,
    BatchRecord,
    DocumentText,
    InputChanged,
    RecordParser,
    record_options,
    without_nul,
)
from capt_local.decoding.options import GenerateOptions
from capt_local.documents import LARGEST_FILE, SUFFIXES, DocumentError, read
from capt_local.errors import UsageError
from capt_local.strict_json import (
    ParseError,
    open_regular,
    parse_object,
    read_bytes,
    size_text,
    utf8,
)

LABEL = "The input"  # its name may be a patient's
_SHOWN = 20  # different problems that one error lists, and numbers listed for each
_MOST_COLUMNS = 1000
_PROGRESS_EVERY = 500  # records
_NOT_CSV = "not CSV (look at its quotation marks)"


class InputErrors(UsageError):
    """Records of the input are invalid; no model was loaded. The message is one line.

    Attributes:
        numbers: of the invalid records, by problem.
    """

    def __init__(self, numbers: Mapping[str, Sequence[int]], problems: str) -> None:
        self.numbers = numbers
        super().__init__(
            f"{LABEL}: {problems}. No model was loaded. --skip-invalid runs the other records."
        )


@dataclass(frozen=True, slots=True)
class RawRecord:
    """The bytes of one record."""

    number: int  # of its first line (of a folder: of the file), from 1
    start: int  # offset in the input, in bytes (of a folder: index of the file)
    data: bytes  # without the end of its last line
    problem: str | None = None  # why it cannot be read


class JsonLines:
    """Lines of JSON objects."""

    format, unit = "jsonl", "line"

    def __init__(self, path: Path) -> None:
        self._path = path
        self.hash = hashlib.sha256()  # of what was read; of the whole input behind `pieces`
        self.share = 0.0  # of the input that was read

    def pieces(self) -> Iterator[RawRecord]:
        """The records in order. Raises OSError if the input cannot be read."""
        for line in self._lines():
            if line.problem is not None or line.data.strip():
                yield dataclasses.replace(line, data=_without_end(line.data))

    def fields(self, piece: RawRecord) -> dict[str, object]:
        """The fields of a record by name. Raises ParseError."""
        return parse_object(piece.data, as_written=True)

    def read_again(self, start: int, size: int) -> bytes:
        """The bytes of a record as they are now. Raises OSError."""
        with self._path.open("rb") as stream:
            stream.seek(start)
            return stream.read(size)

    def described(self) -> dict[str, str]:
        """What determines a record's fields besides its bytes, for the fingerprint; no text."""
        return {}

    def _lines(self) -> Iterator[RawRecord]:
        """Each line with its line feed; a byte order mark in front of the first is left out."""
        number = offset = 0
        with self._path.open("rb") as stream:
            size = max(1, os.fstat(stream.fileno()).st_size)
            while line := stream.readline(LONGEST + 1):
                number, start, problem = number + 1, offset, None
                self.hash.update(line)
                offset += len(line)
                if len(line) > LONGEST and not line.endswith(b"\n"):
                    problem = f"longer than {size_text(LONGEST)}"
                    while line and not line.endswith(b"\n"):  # skipped in small parts
                        line = stream.readline(1 << 16)
                        self.hash.update(line)
                        offset += len(line)
                    line = b""
                if number == 1 and line.startswith(BOM_UTF8):
                    start, line = start + len(BOM_UTF8), line.removeprefix(BOM_UTF8)
                self.share = min(1.0, offset / size)
                yield RawRecord(number, start, line, problem)


class CsvTable(JsonLines):
    """CSV as Python's `csv` reads it, quoted with "; the first row names the columns.

    A quoted cell may hold line feeds, so a row may be several lines.
    """

    format = "csv"

    def __init__(self, path: Path, delimiter: str | None = None) -> None:
        super().__init__(path)
        self._delimiter = delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
        self.columns: tuple[str, ...] = ()
        self._row: list[RawRecord] = []
        self._row_size = 0
        self._problem: str | None = None
        csv.field_size_limit(LONGEST)  # instead of 131,072 characters

    def pieces(self) -> Iterator[RawRecord]:
        """The rows. Raises UsageError if there is no header, or an unusable one."""
        rows = self._rows()
        header = next(rows, None)
        if header is None:
            raise UsageError(f"{LABEL} is empty; its first line must name the columns.")
        try:
            if header.problem is not None:
                raise ParseError(header.problem)
            self.columns = _columns(self._cells(header), self._delimiter)
        except ParseError as error:
            raise UsageError(f"{LABEL}, line {header.number}: {error}.") from None
        yield from rows

    def fields(self, piece: RawRecord) -> dict[str, object]:
        cells = self._cells(piece)
        if len(cells) != len(self.columns):
            raise ParseError(
                f"it has {len(cells)} cells, and the first line has {len(self.columns)}"
            )
        return dict(zip(self.columns, cells, strict=True))

    def described(self) -> dict[str, str]:
        names = hashlib.sha256(json.dumps(self.columns).encode()).hexdigest()
        return {"delimiter": self._delimiter, "columns_sha256": names}

    def _rows(self) -> Iterator[RawRecord]:
        """The rows that are not blank; a wrong one has a problem."""
        reader = csv.reader(self._feed(), strict=True, delimiter=self._delimiter)
        more = True
        while more:
            self._row, self._row_size, self._problem, cells = [], 0, None, None
            try:
                cells = next(reader, None)
                more = cells is not None
            except csv.Error:  # its message may hold a cell
                self._problem = self._problem or _NOT_CSV
            except ParseError as error:
                self._problem, more = str(error), False
            if self._problem is not None or cells:
                first = self._row[0]
                data = _without_end(b"".join(line.data for line in self._row))
                yield RawRecord(first.number, first.start, data, self._problem)

    def _feed(self) -> Iterator[str]:
        """Lines for the csv reader, which takes as many as a row has."""
        for line in self._lines():
            self._row.append(line)
            self._row_size += len(line.data)
            if line.problem is not None or self._row_size > LONGEST:
                raise ParseError(
                    f"a row of more than {size_text(LONGEST)}, or a quotation mark that is "
                    "not closed; what follows it was not checked"
                )
            try:
                yield without_nul(utf8(line.data), "it")
            except ParseError as error:
                self._problem = str(error)
                yield line.data.decode("utf-8", "surrogateescape")  # so the row's end is found

    def _cells(self, row: RawRecord) -> Sequence[str]:
        stream = io.StringIO(without_nul(utf8(row.data), "it"), newline="")
        try:
            return next(csv.reader(stream, strict=True, delimiter=self._delimiter), [])
        except csv.Error:
            raise ParseError(_NOT_CSV) from None


def _columns(names: Sequence[str], delimiter: str) -> tuple[str, ...]:
    if len(names) > _MOST_COLUMNS:
        raise ParseError(f"more than {_MOST_COLUMNS} columns")
    if "" in names:
        raise ParseError("a column has no name")
    if len(set(names)) < len(names):
        raise ParseError("two columns have the same name")
    if len(names) == 1 and not (set(",;\t|") - {delimiter}).isdisjoint(names[0]):
        raise ParseError("one column; say with --delimiter what separates the cells")
    return tuple(names)


def _without_end(data: bytes) -> bytes:
    return data.removesuffix(b"\n").removesuffix(b"\r")


class Folder(JsonLines):
    """The documents of a folder in the order of their names; its folders are not read.

    The digest of the input is over names and SHA-256 of the files. `ignored` is how many other
    entries the folder has.
    """

    format, unit = "txt-dir", "file"

    def __init__(self, path: Path, documents: DocumentField) -> None:
        super().__init__(path)
        self._documents = documents
        entries = os.listdir(path)
        # `~$` begins the names of files that Word holds open.
        known = (name for name in entries if Path(name).suffix.lower() in SUFFIXES)
        self.names = sorted(name for name in known if not name.startswith("~$"))
        self.ignored = len(entries) - len(self.names)

    def pieces(self) -> Iterator[RawRecord]:
        for index, name in enumerate(self.names):
            data, problem = b"", None
            try:
                data = self._read(name)
            except ParseError as error:
                problem = str(error)
            except OSError as error:
                problem = f"cannot be read: {error.strerror or 'no access'}"
            self.hash.update(os.fsencode(name) + b"\0" + hashlib.sha256(data).digest())
            self.share = (index + 1) / len(self.names)
            yield RawRecord(index + 1, index, data, problem)

    def fields(self, piece: RawRecord) -> dict[str, object]:
        name = self.names[piece.start]
        return {"id": name, "note": self._documents.text(piece.data, name)}

    def read_again(self, start: int, size: int) -> bytes:
        try:
            return self._read(self.names[start])
        except ParseError:
            return b""

    def _read(self, name: str) -> bytes:
        path = self._path / name
        if path.is_symlink():  # it could name a file that the user does not mean to send
            raise ParseError("a link; copy the file into the folder")
        most = LONGEST if SUFFIXES[path.suffix.lower()] == "text" else LARGEST_FILE
        with open_regular(path, follow=False) as stream:
            data = stream.read(most + 1)
        if len(data) > most:
            raise ParseError(f"larger than {size_text(most)}")
        return data


@dataclass(frozen=True, slots=True)
class DocumentField:
    """The field (`--document-field`) that names a document and is replaced by its text."""

    name: str | None  # None where records name no documents
    folder: Path  # that paths in it are relative to
    encoding: str | None = None
    # What was not read, and of how many documents.
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)

    def fill(self, fields: dict[str, object]) -> tuple[dict[str, object], bytes]:
        """The fields with the text of the document, and SHA-256 of its file. Raises ParseError."""
        if self.name is None:
            return fields, b""
        path = fields.get(self.name)
        if not isinstance(path, str) or not path:
            raise ParseError("the field of the document (--document-field) is missing or no text")
        try:
            # The author of the records must not choose other files of the user to read.
            inside = (self.folder / path).resolve().is_relative_to(self.folder.resolve())
        except (OSError, RuntimeError, ValueError):  # a name with a zero byte, links in a circle
            inside = False
        if not inside:
            raise ParseError("its document is not in the folder of the input, or below it")
        try:
            data = read_bytes(self.folder / path, "its document", largest=LARGEST_FILE)
        except UsageError as error:
            raise ParseError(str(error).removesuffix(".")) from None
        return {**fields, self.name: self.text(data, path)}, hashlib.sha256(data).digest()

    def text(self, data: bytes, name: str) -> DocumentText:
        """The text of a document. Raises ParseError."""
        try:
            document = read(data, name=name, what="it", encoding=self.encoding)
        except DocumentError as error:
            raise ParseError(f"it {error.problem}") from None
        if len(document.text.encode("utf-8", "replace")) > LONGEST:
            raise ParseError(f"its text is larger than {size_text(LONGEST)}")
        self.left_out.update(document.notices)
        return DocumentText(document)


class _Place(NamedTuple):
    """Position, size and digest of a record; see `RawRecord`."""

    number: int
    start: int
    size: int
    sha256: bytes


class InputSource:
    """A checked input; records are read again by their index, 0 to `len(self) - 1`."""

    def __init__(self, reader: JsonLines, parser: RecordParser, documents: DocumentField) -> None:
        """See `check_input`, which fills it."""
        self.digest = ""  # SHA-256 of the input
        self.notices: list[str] = []  # sentences for the user
        self.skipped: list[tuple[int, str]] = []  # number and problem of each that was left out
        self.ids: list[str] = []  # of all records, in order; unique
        self._reader, self._parser, self._documents = reader, parser, documents
        self._index: dict[str, int] = {}
        self._places: list[_Place] = []

    def __len__(self) -> int:
        return len(self.ids)

    def fields(self, piece: RawRecord) -> tuple[dict[str, object], bytes]:
        """The fields of a record, and SHA-256 of its bytes and of the document that it names.

        Raises:
            ParseError: it has none, or the document cannot be read.
        """
        fields, document = self._documents.fill(self._reader.fields(piece))
        return fields, hashlib.sha256(piece.data + document).digest()

    def add(self, piece: RawRecord, id: str, sha256: bytes) -> None:
        """Adds the next record. Raises ParseError if its id is that of an earlier one."""
        first = self._index.setdefault(id, len(self.ids))
        if first < len(self.ids):
            raise ParseError(f"its id is that of {self._reader.unit} {self._places[first].number}")
        self.ids.append(id)
        self._places.append(_Place(piece.number, piece.start, len(piece.data), sha256))

    def size(self, index: int) -> int:
        """Bytes of a record."""
        return self._places[index].size

    def line(self, index: int) -> tuple[int, str]:
        """Number of a record, and its SHA-256 (hexadecimal; see `fields`), as of the check."""
        return self._places[index].number, self._places[index].sha256.hex()

    def lines(self) -> Iterator[tuple[int, str, str]]:
        """Number, id and SHA-256 of each record."""
        for id, place in zip(self.ids, self._places, strict=True):
            yield place.number, id, place.sha256.hex()

    def record(self, index: int) -> BatchRecord:
        """Reads a record again.

        Raises:
            InputChanged: its bytes are not those that were checked, or cannot be read.
        """
        number, start, size, sha256 = self._places[index]
        where = f"{LABEL}, {self._reader.unit} {number}"
        try:
            data = self._reader.read_again(start, size)
        except OSError as error:
            reason = error.strerror or "no access"
            raise InputChanged(f"{where}: it can no longer be read: {reason}.") from None
        try:
            fields, digest = self.fields(RawRecord(number, start, data))
            if digest == sha256:
                return self._parser.parse(number, fields, sha256.hex())
        except ParseError:
            pass
        raise InputChanged(f"{where}: it has changed since the input was checked.")

    def described(self) -> dict[str, Any]:
        """What determines a prompt besides the record's bytes, for the fingerprint; no text."""
        return {
            "format": self._reader.format,
            **self._reader.described(),
            **self._parser.described(),
            **({"document_field": self._documents.name} if self._documents.name else {}),
        }


def check_input(
    path: Path,
    *,
    parser: RecordParser | None = None,
    delimiter: str | None = None,
    document_field: str | None = None,
    encoding: str | None = None,
    options: GenerateOptions | None = None,
    skip_invalid: bool = False,
    progress: Callable[[float], None] | None = None,
) -> InputSource:
    """Checks all of an input: a folder, or a file whose name says how records are written.

    Loads no model. `document_field` names the document that each record is about, `encoding` is
    that of text files among documents (None: that of their mark, else UTF-8). What a record sets
    for itself must go with the options of the run. `skip_invalid` leaves wrong records out instead
    of refusing the input; `progress` is called with the share of the input that is checked.

    Raises:
        UsageError: the input cannot be read, or holds no record.
        InputErrors: some records are invalid; all were checked.
    """
    parser, options = parser or RecordParser(), options or GenerateOptions()
    wrong: dict[str, list[int]] = {}
    try:
        folder = path if path.is_dir() else path.parent
        documents = DocumentField(document_field, folder, encoding)
        reader = _reader(path, delimiter, documents)
        if isinstance(reader, Folder):
            if parser.id_field != "id":
                raise UsageError(
                    "--id-field goes with JSON Lines and CSV; in a folder, names are the ids."
                )
            if document_field is not None:
                raise UsageError("--document-field goes with JSON Lines and CSV.")
            parser = dataclasses.replace(parser, prompt_field="note")
        elif document_field is None and encoding is not None:
            raise UsageError("--encoding goes with a folder of documents or --document-field.")
        source = InputSource(reader, parser, documents)
        for count, piece in enumerate(reader.pieces()):
            try:
                if piece.problem is not None:
                    raise ParseError(piece.problem)
                fields, digest = source.fields(piece)
                record = parser.parse(piece.number, fields, "")
                record_options(options, 0, record.adapter_scales)
                source.add(piece, record.id, digest)
            except (ParseError, UsageError) as error:
                wrong.setdefault(str(error).removesuffix("."), []).append(piece.number)
            if progress is not None and count % _PROGRESS_EVERY == 0:
                progress(reader.share)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or "no access"
        raise UsageError(f"{LABEL} cannot be read: {reason}.") from None
    source.digest = reader.hash.hexdigest()
    if wrong:
        problems = _listed(wrong, reader.unit)
        if not skip_invalid:
            raise InputErrors(wrong, problems)
        source.skipped = sorted((number, why) for why, each in wrong.items() for number in each)
        source.notices.append(f"left out of the run (--skip-invalid): {problems}.")
    if not len(source):
        raise UsageError(f"{LABEL} holds no {'valid ' if wrong else ''}record.")
    if isinstance(reader, Folder) and reader.ignored:
        source.notices.append(
            "entries of the input folder that are no documents (.txt, .pdf, .docx, ...), and are "
            f"not read: {reader.ignored}."
        )
    source.notices += [f"of {n} documents: {what}." for what, n in documents.left_out.items()]
    return source


def _listed(wrong: Mapping[str, Sequence[int]], unit: str) -> str:
    """Each problem once, with the records that have it: "lines 2, 5 and 498 more: not JSON"."""
    found = []
    for why, numbers in list(wrong.items())[:_SHOWN]:
        shown = ", ".join(map(str, numbers[:_SHOWN]))
        more = f" and {len(numbers) - _SHOWN} more" if numbers[_SHOWN:] else ""
        found.append(f"{unit}{'s' if numbers[1:] else ''} {shown}{more}: {why}")
    if (rest := len(wrong) - _SHOWN) > 0:
        found.append(f"and {rest} other problems")
    return "; ".join(found)


def _reader(path: Path, delimiter: str | None, documents: DocumentField) -> JsonLines:
    is_table = path.suffix.lower() in (".csv", ".tsv")
    if delimiter is not None and (path.is_dir() or not is_table):
        raise UsageError("--delimiter goes with CSV: *.csv or *.tsv.")
    if path.is_dir():
        return Folder(path, documents)
    if not is_table and path.suffix.lower() not in (".jsonl", ".ndjson"):
        raise UsageError(
            f"{LABEL} is no folder, and does not end in .jsonl, .ndjson, .csv or .tsv."
        )
    if path.exists() and not path.is_file():  # records are read again when their turn comes
        raise UsageError(f"{LABEL} is not a regular file. Save what comes through a pipe first.")
    return CsvTable(path, delimiter) if is_table else JsonLines(path)
