"""The check of a whole input, before any model is loaded.

All lines are looked at, and every wrong one is told with its number. What comes through a pipe
cannot be read again: it is kept in memory, up to a limit, since a temporary file would leave
patients' text on the disk.
"""

from __future__ import annotations

import dataclasses
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from capt_local.batch.asking import Asking, model_of
from capt_local.batch.folder import Folder, refuse_other_id
from capt_local.batch.inputs import (
    WHAT,
    FileStore,
    Input,
    InputFormat,
    Lines,
    MemoryStore,
    Store,
    Table,
    delimiter_of,
)
from capt_local.batch.pieces import LONGEST, Piece
from capt_local.batch.records import SHOWN, InputErrors, RecordSettings
from capt_local.batch.sources import Index, Source
from capt_local.decoding.options import GenerateOptions
from capt_local.errors import UsageError
from capt_local.strict.files import size_text
from capt_local.strict.problems import NotReadable

Progress = Callable[[float], None]
_TOLD_EVERY = 500  # records


@dataclass(frozen=True, slots=True)
class InputLimits:
    """How much is read.

    Attributes:
        record: bytes of a line, a row or a text file.
        piped: bytes of an input that comes through a pipe, which is kept in memory.
        shown: problems that are told one by one.
    """

    record: int = LONGEST
    piped: int = 64 << 20
    shown: int = SHOWN


def check_input(
    path: Path,
    format: InputFormat | None = None,
    *,
    asking: Asking | None = None,
    delimiter: str | None = None,
    options: GenerateOptions | None = None,
    model: str | None = None,
    limits: InputLimits | None = None,
    progress: Progress | None = None,
    stdin: BinaryIO | None = None,
) -> Source:
    """Checks all of an input. Loads no model.

    Args:
        path: a file, a folder or a pipe; "-" is standard input.
        format: how records are written; None: the name says.
        asking: how their fields become prompts.
        delimiter: between the cells of a table; None: the name says.
        options: of the run; what a record sets for itself must go with them.
        model: that answers. Lines may ask for another one: then a notice says so.
        limits: how much is read.
        progress: called now and then with the share of the input that is checked.
        stdin: standard input; the process's own when None.

    Raises:
        UsageError: the input cannot be read, or holds no record.
        InputErrors: lines of it are wrong; all were looked at.
    """
    asking, limits = asking or Asking(), limits or InputLimits()
    held = _held(path, format, delimiter, limits, stdin)
    before = held.stamp()
    if held.kind is InputFormat.TXT_DIR:
        refuse_other_id(asking.id_field)
        asking = dataclasses.replace(asking, prompt_field="note")
    checking = _Checking(held, asking, options or GenerateOptions(), model, limits)
    for count, piece in enumerate(_pieces(held)):
        checking.take(piece)
        if progress is not None and count % _TOLD_EVERY == 0:
            progress(held.share)
    if held.stamp() != before:
        raise UsageError(f"{WHAT} was written to while it was checked. Run again when it is done.")
    return checking.source()


def _pieces(held: Input) -> Iterator[Piece]:
    try:
        yield from held.pieces()
    except OSError as error:
        raise _unreadable(error) from None


class _Checking:
    """Takes the pieces of an input, and notes what is wrong."""

    def __init__(
        self,
        held: Input,
        asking: Asking,
        options: GenerateOptions,
        model: str | None,
        limits: InputLimits,
    ) -> None:
        self._held = held
        self._asking = asking
        self._options = options
        self._model = model
        self._limits = limits
        self._index = Index()
        self._settled = RecordSettings()  # those that were found good last
        self._problems: list[str] = []
        self._wrong = 0
        self._other_models = 0

    def take(self, piece: Piece) -> None:
        try:
            if piece.problem is not None:
                raise NotReadable(piece.problem)
            fields = self._held.fields(piece)
            record = self._asking.record(piece.number, fields, "")
            if record.settings != self._settled:
                record.settings.applied(self._options)
                self._settled = record.settings
            if record.id in self._index.places:
                before = self._index.number_of(record.id)
                raise NotReadable(f"its id is that of {self._held.unit} {before}")
        except (NotReadable, UsageError) as error:
            self._wrong += 1
            if len(self._problems) < self._limits.shown:
                problem = str(error).removesuffix(".")
                self._problems.append(f"{self._held.unit} {piece.number}: {problem}")
        else:
            self._index.add(piece, record.id)
            asked = model_of(fields) if record.custom_id is not None else None
            self._other_models += asked is not None and asked != self._model

    def source(self) -> Source:
        if self._wrong:
            raise InputErrors(WHAT, self._held.unit, self._problems, self._wrong)
        if not self._index.places:
            raise UsageError(f"{WHAT} holds no record.")
        return Source(self._held, self._asking, self._index, self._notices())

    def _notices(self) -> list[str]:
        found = []
        if self._other_models:
            found.append(
                f"lines of the input that ask for a model by another name: {self._other_models}. "
                "The models of this run answer them."
            )
        if isinstance(self._held, Folder) and self._held.passed_over:
            found.append(
                "entries of the input folder that are not *.txt, and are not read: "
                f"{self._held.passed_over}."
            )
        return found


def _held(
    path: Path,
    format: InputFormat | None,
    delimiter: str | None,
    limits: InputLimits,
    stdin: BinaryIO | None,
) -> Input:
    """The input, with nothing of it checked."""
    piped = None if str(path) != "-" else stdin or _standard_input()
    try:
        kind = format or InputFormat.of(path if piped is None else None)
        if delimiter is not None and kind is not InputFormat.CSV:
            raise UsageError("--delimiter goes with CSV: --input-format csv.")
        if kind is InputFormat.TXT_DIR:
            if piped is not None or not path.is_dir():
                raise UsageError("--input-format txt-dir needs a folder.")
            return Folder(path, WHAT, limits.record)
        store = _store(path, limits) if piped is None else _kept(piped, limits)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise _unreadable(error) from None
    if kind is InputFormat.CSV:
        return Table(store, WHAT, limits.record, delimiter or delimiter_of(path))
    return Lines(store, WHAT, limits.record)


def _store(path: Path, limits: InputLimits) -> Store:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise UsageError(f"{WHAT} is a folder. For one of text files: --input-format txt-dir.")
    if stat.S_ISREG(mode):
        return FileStore(path)
    with path.open("rb") as stream:
        return _kept(stream, limits)


def _kept(stream: BinaryIO, limits: InputLimits) -> Store:
    data = stream.read(limits.piped + 1)
    if len(data) > limits.piped:
        raise UsageError(
            f"{WHAT} comes through a pipe and is larger than {size_text(limits.piped)}, which is "
            "what is kept in memory. Give it as a file; no copy is written to the disk."
        )
    return MemoryStore(data)


def _standard_input() -> BinaryIO:
    stream = sys.stdin.buffer if sys.stdin is not None else None
    if stream is None or stream.isatty():
        raise UsageError("There is no input: '-' reads standard input, and that is a terminal.")
    return stream


def _unreadable(error: Exception) -> UsageError:
    reason = getattr(error, "strerror", None) or "no access"
    return UsageError(f"{WHAT} cannot be read: {reason}.")
