"""The output of a run as its journal: a finished record is on the disk once, and stays there.

Records that finish at the same moment are one write of their whole lines and one fsync; when
`append` returns, neither a kill nor a power cut loses them. The file never holds a record twice:
lines are only appended, and where lines are removed or reordered, the whole file is written beside,
flushed and renamed. What is refused at the start has changed nothing.

    OUTPUT            the lines, in the order in which records finished
    OUTPUT.run.json   which run it is (`manifest`)
    OUTPUT.capt-lock  while a run goes on
    OUTPUT.torn-1     a half line that a kill left, moved aside
    OUTPUT.old-1      what --force-new moved aside, with its OUTPUT.old-1.run.json

All have mode 0600 and are never opened through a link.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import io
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec

from capt_local.batch.manifest import (
    ENDING,
    Fingerprint,
    RunManifest,
    differences,
    listed,
    manifest_path,
)
from capt_local.batch.output import OK, OutputLine, answer_text, output_digest
from capt_local.errors import UsageError
from capt_local.strict_json import NotReadable, parse_object

WHAT = "The output (-o)"
NO_LOCKS = (
    "This file system has no locks: nothing keeps a second run from writing to the same output."
)
OTHER_DEVICES = (
    "This start computes on other devices, or with other layers on them, than an earlier one (the "
    "manifest lists both): last digits of numbers, and rarely a token, may differ."
)
_NEW = "capt-new"  # a file that is written beside and then renamed
_LARGEST_MANIFEST = 16 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Lines = Iterable[tuple[int, str, str]]  # number, id and SHA-256 of each record of the input


class JournalBroken(UsageError):
    """The output can no longer be written; what is reported as safe is.

    Attributes:
        safe: how many records are on the disk.
    """

    def __init__(self, problem: str, safe: int) -> None:
        self.safe = safe
        records = "1 record is" if safe == 1 else f"{safe} records are"
        super().__init__(f"{problem} {records} safe; the same command goes on behind them.")


class JournalFull(JournalBroken):
    """There is no room left on the disk."""


class Files:
    """The file operations of the journal, so that a test can let each fail. All raise OSError."""

    def open(self, path: Path, flags: int) -> io.FileIO:
        """Opens a file unbuffered, for its owner alone if it is created."""
        # Without O_NONBLOCK, a FIFO of that name would wait for its other end.
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        return io.FileIO(handle, "r+b" if flags & os.O_RDWR else "rb")

    def write(self, stream: io.FileIO, data: memoryview) -> int:
        """Writes once; returns how many bytes were written."""
        return stream.write(data) or 0

    def fsync(self, stream: io.FileIO) -> None:
        """Returns when the disk has what was written."""
        os.fsync(stream.fileno())

    def truncate(self, stream: io.FileIO, size: int) -> None:
        """Cuts a file off."""
        stream.truncate(size)

    def replace(self, old: Path, new: Path) -> None:
        """Renames a file over another one."""
        os.replace(old, new)

    def unlink(self, path: Path) -> None:
        """Removes a file."""
        os.unlink(path)

    def sync_folder(self, folder: Path) -> None:
        """Returns when the disk knows which files the folder holds."""
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
                raise
        finally:
            os.close(handle)

    def create(self, path: Path) -> io.FileIO:
        """A new file for reading and writing; FileExistsError if there is one."""
        stream = self.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            self.sync_folder(path.parent)
        except BaseException:
            stream.close()
            raise
        return stream

    def write_all(self, stream: io.FileIO, data: bytes) -> None:
        """Writes with one call, or with more where the system takes less at once."""
        rest = memoryview(data)
        while rest:
            written = self.write(stream, rest)
            if not written:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            rest = rest[written:]

    def put(self, path: Path, data: bytes) -> None:
        """Makes a file hold `data`, on the disk, whole or not at all."""
        beside = _beside(path, _NEW)
        self.remove(beside)
        try:
            with self.create(beside) as stream:
                self.write_all(stream, data)
                self.fsync(stream)
            self.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                self.unlink(beside)
            raise
        self.sync_folder(path.parent)

    def remove(self, path: Path) -> None:
        """Removes a file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.unlink(path)


_FILES = Files()


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}.{ending}")


def _unused(path: Path, word: str) -> Path:
    """The first of `path`.WORD-1, `path`.WORD-2, ... that does not exist."""
    number = 1
    while os.path.lexists(found := _beside(path, f"{word}-{number}")):
        number += 1
    return found


def check_place(path: Path, inputs: Sequence[Path] = ()) -> None:
    """Refuses places where no output can be.

    Args:
        path: of the output.
        inputs: files and folders that the run reads.

    Raises:
        UsageError: it is a folder, a link, a device, or one of the inputs; its folder is missing.
    """
    if str(path) == "-":
        raise UsageError(f"{WHAT} is a file: a run could not be resumed on standard output.")
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise UsageError(f"{WHAT} cannot be written: its folder does not exist.") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise _refusal(error) from None
    else:
        for kind, name in ((stat.S_ISDIR, "a folder"), (stat.S_ISLNK, "a symbolic link")):
            if kind(mode):
                raise UsageError(f"{WHAT} is {name}. Name a file.")
        if not stat.S_ISREG(mode):
            raise UsageError(f"{WHAT} is not a regular file. Name another one.")
    for other in inputs:
        with contextlib.suppress(OSError, ValueError):  # one of them does not exist
            if path.resolve() == other.resolve() or (path.exists() and path.samefile(other)):
                raise UsageError(f"{WHAT} is a file that the run reads. Name another one.")
            if is_note_of(path, other):
                raise UsageError(
                    f"{WHAT} would be read as a note: it is a .txt in the folder of the notes. "
                    "Name it .jsonl, or another folder."
                )


def is_note_of(path: Path, folder: Path) -> bool:
    """Whether a file would be one of the texts of a folder of notes."""
    text = path.suffix.lower() == ".txt" and folder.is_dir()
    return text and path.resolve().parent == folder.resolve()


def _refusal(error: OSError | ValueError) -> UsageError:
    reason = getattr(error, "strerror", None) or "no access"
    return UsageError(f"{WHAT} cannot be written: {reason}. What was there is unchanged.")


def read_manifest(output: Path) -> RunManifest | None:
    """The manifest beside an output; None where there is none.

    Raises:
        UsageError: it is broken, of another version, or no regular file.
    """
    try:
        # Never waits: a FIFO of this name is refused.
        with Files().open(manifest_path(output), os.O_RDONLY) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise UsageError(f"{WHAT}: its manifest (.{ENDING}) is not a regular file.")
            data = stream.read(_LARGEST_MANIFEST)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = error.strerror or "no access"
        raise UsageError(f"{WHAT}: its manifest (.{ENDING}) cannot be read: {reason}.") from None
    return RunManifest.decode(data, WHAT)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the output, without its text.

    Attributes:
        code: `ok`, or that of its error.
        answered: whether it holds an answer; one that breaks its schema is answer and error.
        sha256: of the record in the input, in hexadecimal.
        offset, length: of the line with its end, in bytes.
    """

    code: str
    answered: bool
    sha256: str
    offset: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class OutputState:
    """What an output holds.

    Attributes:
        manifest: of the run that goes on; None where one begins.
        entries: its lines, by the id of the record, in the order of the file.
        whole, size: bytes of whole lines, and of the file; what lies between is torn.
        notices: sentences for the user.
    """

    manifest: RunManifest | None = None
    entries: dict[str, Entry] = field(default_factory=dict)
    whole: int = 0
    size: int = 0
    notices: tuple[str, ...] = ()

    @property
    def torn(self) -> int:
        """Bytes of the half line that a kill or a full disk left at the end."""
        return self.size - self.whole

    def staying(self, *, retry_errors: bool) -> dict[str, Entry]:
        """The lines whose records are not done again."""
        entries = self.entries.items()
        return {id: entry for id, entry in entries if entry.answered or not retry_errors}


class _LineRecord(msgspec.Struct):
    line: int
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _LineProvenance(msgspec.Struct):
    run: str
    record: _LineRecord
    output_sha256: str | None = None


class _LineError(msgspec.Struct):
    code: str


class _Line(msgspec.Struct):
    """The fields of an output line that a resumed run reads."""

    id: str
    response: dict[str, Any] | None
    error: _LineError | None
    provenance: _LineProvenance

    def __post_init__(self) -> None:
        if self.response is None and self.error is None:
            raise ValueError("neither answer nor error")

    @property
    def digest_matches(self) -> bool:
        """Whether the answer is the one that was written."""
        if self.response is None:
            return True
        try:
            text = answer_text(self.response["body"]["choices"][0])
        except (KeyError, IndexError, TypeError):
            return False
        return output_digest(text) == self.provenance.output_sha256


def _scan(stream: io.FileIO, manifest: RunManifest) -> OutputState:
    """Reads an output from its beginning to its end; holds no text.

    Raises:
        UsageError: a line that others follow is broken, is of another run, was edited, or has the
            id of another one. At the end of the file, what is no line is torn instead.
        OSError: as the system does.
    """
    entries: dict[str, Entry] = {}
    whole = size = 0
    broken: int | None = None

    def refuse(number: int, problem: str) -> NoReturn:
        raise UsageError(
            f"{WHAT}, line {number}: it {problem}. Nothing was written. Name a new file, or move "
            "this one aside with --force-new."
        )

    stream.seek(0)
    with open(stream.fileno(), "rb", closefd=False, buffering=1 << 20) as lines:
        for number, data in enumerate(lines, 1):
            size += len(data)
            try:
                if not data.endswith(b"\n"):
                    raise NotReadable("no end")
                line = msgspec.convert(parse_object(data), _Line)
            except (NotReadable, msgspec.ValidationError):
                broken = broken or number
                continue
            if broken is not None:
                refuse(broken, "is not a result of capt-local batch")
            if line.provenance.run != manifest.digest:
                refuse(number, "is of a run with other settings")
            if line.id in entries:
                refuse(number, "is of a record that an earlier line is of")
            if not line.digest_matches:
                refuse(number, "has an answer that was edited: it does not match its digest")
            entries[line.id] = Entry(
                code=line.error.code if line.error else OK,
                answered=line.response is not None,
                sha256=line.provenance.record.sha256,
                offset=size - len(data),
                length=len(data),
            )
            whole = size
    return OutputState(manifest, entries, whole, size)


def _examine(
    path: Path,
    stream: io.FileIO | None,
    fingerprint: Fingerprint,
    records: Lines | None,
    *,
    retry_errors: bool,
) -> OutputState:
    """Reads an output and compares it with the run that is to go on with it; writes nothing.

    Raises:
        UsageError: it is of another run or of none, or a record has changed since its line was
            written.
        OSError: as the system does.
    """
    if stream is None or not os.fstat(stream.fileno()).st_size:
        return OutputState()
    manifest = read_manifest(path)
    if manifest is None:
        raise UsageError(
            f"{WHAT} holds something that is not of capt-local batch, or has lost its manifest "
            f"(.{ENDING}). Nothing was written; name a new file."
        )
    if names := differences(manifest.fingerprint, fingerprint.as_object()):
        raise UsageError(
            f"{WHAT} is of a run with other settings; what differs: {listed(names)}. Use the same "
            "settings, name a new file, or move this one aside with --force-new."
        )
    found = _scan(stream, manifest)
    if records is None:
        return found
    staying, changed, seen = found.staying(retry_errors=retry_errors), [], 0
    for number, id, sha256 in records:
        if (entry := staying.get(id)) is not None:
            seen += 1
            if entry.sha256 != sha256:
                changed.append(number)
    if changed:
        more = f", and {len(changed) - 1} more" if changed[1:] else ""
        raise UsageError(
            f"The input, line {changed[0]}{more}: changed since its line was written. Give "
            "changed records new ids (or use --retry-errors where they had failed), or begin "
            "again with --force-new."
        )
    if gone := len(staying) - seen:
        notice = f"{_counted(gone)} in the output and no longer in the input."
        found = dataclasses.replace(found, notices=(notice,))
    return found


def look(
    path: Path,
    fingerprint: Fingerprint,
    records: Lines,
    *,
    retry_errors: bool = False,
    force_new: bool = False,
) -> OutputState:
    """What a run would find there; writes nothing. For `--check`.

    Raises:
        UsageError: as `OutputJournal.open`.
    """
    Lock(path, create=False).release()
    needed = [path.parent, path] if path.exists() else [path.parent]
    if not all(os.access(place, os.W_OK) for place in needed):
        raise UsageError(f"{WHAT} cannot be written: {os.strerror(errno.EACCES)}.")
    if force_new or not path.exists():
        return OutputState()
    try:
        with _FILES.open(path, os.O_RDONLY) as stream:
            return _examine(path, stream, fingerprint, records, retry_errors=retry_errors)
    except OSError as error:
        raise _refusal(error) from None


class Lock:
    """The kernel's lock on a file beside an output: it ends with the process, however that ends.

    Not on the output itself, which is replaced at times. (`filelock` leaves its file behind, also
    beside an output that was refused.)

    Args:
        output: whose lock it is.
        create: makes the file; without, a lock that nobody holds is no lock.

    Attributes:
        notice: a sentence for the user, or "".

    Raises:
        UsageError: another process holds it.
        OSError: the folder cannot be written.
    """

    def __init__(self, output: Path, *, create: bool = True) -> None:
        self._path = _beside(output, "capt-lock")
        self.notice = ""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0)
        while True:
            try:
                handle = os.open(self._path, flags, 0o600)
            except FileNotFoundError:
                if create:
                    raise
                self._stream: io.FileIO | None = None
                return
            self._stream = io.FileIO(handle, "r+b")
            try:
                _flock(self._stream)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    self._stream.close()
                    raise UsageError(f"{WHAT} is being written by another run.") from None
                self.notice = NO_LOCKS
                return
            # The run before may have removed the file between opening and locking it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(self._path)):
                    return
            self._stream.close()

    def release(self) -> None:
        """Safe to call again."""
        if self._stream is not None and not self._stream.closed:
            if not self.notice:  # else another run may be using it
                with contextlib.suppress(OSError):
                    os.unlink(self._path)
            self._stream.close()


def _flock(stream: io.FileIO) -> None:
    fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


class OutputJournal:
    """An output that is open for one run. Use it as a context manager, from one thread.

    Attributes:
        done: `ok` or the code of the error of each record that has a line.
        notices: sentences for the user.
        manifest: which run it is.
    """

    def __init__(self, path: Path, files: Files, lock: Lock, stream: io.FileIO) -> None:
        """See `open`."""
        self._path, self._files, self._lock, self._stream = path, files, lock, stream
        self._entries: dict[str, Entry] = {}
        self._size = 0
        self._broken: JournalBroken | None = None
        self.manifest: RunManifest
        self.done: dict[str, str] = {}
        self.notices: list[str] = []

    @classmethod
    def open(
        cls,
        path: Path,
        fingerprint: Fingerprint,
        *,
        records: Lines | None = None,
        input: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        retry_errors: bool = False,
        force_new: bool = False,
        files: Files = _FILES,
        inputs: Sequence[Path] = (),
    ) -> OutputJournal:
        """Begins an output, or goes on with one of the same run.

        Args:
            path: of the output.
            fingerprint: of this run.
            records: of the input as it is now; what is done is compared with them before anything
                is written.
            input: what the manifest says of the input.
            provenance: of this start, for the manifest.
            retry_errors: removes the lines of records without an answer, so that they are done
                again.
            force_new: moves an existing output aside instead of going on with it.
            files: operations; for tests.
            inputs: files and folders that the run reads; the output must be none of them.

        Raises:
            UsageError: it cannot be written, is in use, is something else, is of a run with other
                settings, which are named, or of records that have changed. Nothing was changed.
            JournalBroken: the disk failed while errors were removed. No answer is lost by it.
        """
        check_place(path, inputs)
        with contextlib.ExitStack() as opened:
            try:
                lock = Lock(path)
                opened.callback(lock.release)
                notices = [lock.notice, _move_aside(files, path) if force_new else ""]
                stream = None
                if path.exists():
                    stream = opened.enter_context(files.open(path, os.O_RDWR))
                found = _examine(path, stream, fingerprint, records, retry_errors=retry_errors)
                # Everything that refuses has been asked: from here on files are written.
                files.remove(_beside(path, _NEW))
                start = input or {}, provenance or {}
                if found.manifest is not None:
                    manifest = found.manifest.restarted(*start)
                else:
                    manifest = RunManifest.new(fingerprint, *start)
                    files.put(manifest_path(path), manifest.encode())
                if stream is None:
                    stream = opened.enter_context(files.create(path))
                os.fchmod(stream.fileno(), 0o600)
                if found.torn:
                    notices.append(_move_torn_end(files, stream, path, found.whole))
                # A run that was killed between write and fsync left a line that is not safe yet.
                files.fsync(stream)
            except OSError as error:
                raise _refusal(error) from None
            opened.pop_all()
        journal = cls(path, files, lock, stream)
        journal._entries, journal._size = found.entries, found.whole
        journal.manifest = manifest
        journal.done = {id: entry.code for id, entry in found.entries.items()}
        journal.notices = [*filter(None, notices), *found.notices]
        try:
            # A manifest that names the input as it is now must have no lines beside it that were
            # made from an earlier one, so the errors go first.
            if retry_errors:
                journal._remove_errors()
            if found.manifest is not None:
                journal._write_manifest(manifest)
        except BaseException:
            journal.close()
            raise
        return journal

    def append(self, *lines: OutputLine) -> None:
        """Appends lines, all in one write and one fsync; they are on the disk when this returns.

        Raises:
            JournalFull: there is no room. What was written of them is cut off again.
            JournalBroken: the disk fails, or something else has changed the output.
            ValueError: a record has a line already.
        """
        ids = {line.id for line in lines}
        if len(ids) < len(lines) or not ids.isdisjoint(self._entries):
            raise ValueError("a record has a line already")
        self._check_unchanged()
        encoded = [line.encode() + b"\n" for line in lines]
        try:
            self._stream.seek(self._size)
            self._files.write_all(self._stream, b"".join(encoded))
            self._files.fsync(self._stream)
        except BaseException as error:  # a second Ctrl-C too
            with contextlib.suppress(OSError):  # where this fails, the next run does it
                self._files.truncate(self._stream, self._size)
                if isinstance(error, Exception):
                    self._files.fsync(self._stream)
            self._stop(error)
        for line, data in zip(lines, encoded, strict=True):
            answered = line.response is not None
            entry = Entry(line.code, answered, line.record.sha256, self._size, len(data))
            self._entries[line.id] = entry
            self._size += len(data)
            self.done[line.id] = line.code

    def put_in_order(self, ids: Iterable[str]) -> bool:
        """Puts the lines into the order of `ids`, when the work is done; other lines come last.

        Returns:
            Whether anything had to be moved.

        Raises:
            JournalBroken: the disk fails or is full. All lines are there.
        """
        wanted = dict.fromkeys(id for id in ids if id in self._entries)
        order = [*wanted, *(id for id in self._entries if id not in wanted)]
        if order == list(self._entries):
            return False
        self._rewrite(order)
        return True

    def set_loaded(self, models: Mapping[str, Any]) -> list[str]:
        """Adds to the manifest how the models were loaded.

        Returns:
            Sentences for the user: whether this start computes on other devices than before.

        Raises:
            JournalBroken: the disk fails or is full; the output is safe.
        """
        manifest = self.manifest.loaded(models)
        if manifest == self.manifest:
            return []
        self._write_manifest(manifest)
        return [OTHER_DEVICES] if len(manifest.devices_used) > 1 else []

    def conclude(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary of the run into the manifest.

        Raises:
            JournalBroken: the disk fails or is full; the output is safe.
        """
        self._write_manifest(dataclasses.replace(self.manifest, last=dict(summary)))

    def close(self) -> None:
        """Closes the output and releases the lock; safe to call again."""
        self._stream.close()
        self._lock.release()

    def __enter__(self) -> OutputJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_manifest(self, manifest: RunManifest) -> None:
        self.manifest = manifest
        try:
            self._files.put(manifest_path(self._path), manifest.encode())
        except OSError as error:
            self._stop(error)

    def _remove_errors(self) -> None:
        """Removes the lines that hold no answer."""
        staying = [id for id, entry in self._entries.items() if entry.answered]
        if len(staying) < len(self._entries):
            self._rewrite(staying)
        self.done = {id: self._entries[id].code for id in staying}
        if invalid := sum(code != OK for code in self.done.values()):
            self.notices.append(
                f"{_counted(invalid)} answered in a wrong form and not done again: the same "
                "settings would give the same."
            )

    def _rewrite(self, wanted: Sequence[str]) -> None:
        """Makes the file hold these lines in this order, in one moment."""
        self._check_unchanged()
        new = _beside(self._path, _NEW)
        entries: dict[str, Entry] = {}
        size = 0
        try:
            with self._files.create(new) as stream:
                for id in wanted:
                    entry = self._entries[id]
                    self._stream.seek(entry.offset)
                    line = self._stream.read(entry.length)
                    if len(line) < entry.length:
                        raise OSError(errno.EIO, "the file has become shorter")
                    self._files.write_all(stream, line)
                    entries[id] = dataclasses.replace(entry, offset=size)
                    size += entry.length
                self._files.fsync(stream)
            self._files.replace(new, self._path)
            self._files.sync_folder(self._path.parent)
            self._stream.close()
            self._stream = self._files.open(self._path, os.O_RDWR)
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._files.remove(new)
            self._stop(error)
        self._entries, self._size = entries, size

    def _check_unchanged(self) -> None:
        """Refuses to go on with a file that failed, or that something else has changed."""
        if self._broken is not None:
            raise self._broken
        status = os.fstat(self._stream.fileno())
        try:
            same = os.path.samestat(status, os.stat(self._path, follow_symlinks=False))
        except OSError:
            same = False
        if not same or status.st_size != self._size:
            what = "changed by something else" if same else "moved or removed"
            self._broken = JournalBroken(f"{WHAT} was {what} during the run.", len(self._entries))
            raise self._broken

    def _stop(self, error: BaseException) -> NoReturn:
        """Raises why no line can be written any more, now and from now on."""
        full = isinstance(error, OSError) and error.errno in _FULL
        reason = (error.strerror if isinstance(error, OSError) else None) or "it was interrupted"
        problem = "The disk of the output (-o) is full" if full else f"{WHAT} failed: {reason}"
        kind = JournalFull if full else JournalBroken
        self._broken = kind(f"{problem}.", len(self._entries))
        if isinstance(error, OSError):
            raise self._broken from None
        raise error


def _move_aside(files: Files, path: Path) -> str:
    """Gives an old output and its manifest another name; nothing is deleted.

    The manifest is copied first: whenever a kill comes, no output is without its own.
    """
    manifest, old = manifest_path(path), _unused(path, "old")
    has_manifest = manifest.is_file()
    if not has_manifest and (not path.exists() or not path.stat().st_size):
        return ""
    if has_manifest:
        files.put(manifest_path(old), manifest.read_bytes())
    if path.exists():
        files.replace(path, old)
    files.remove(manifest)
    files.sync_folder(path.parent)
    ending = old.suffix
    return f"The output that was there is beside the new one, with the ending {ending}."


def _move_torn_end(files: Files, stream: io.FileIO, path: Path, whole: int) -> str:
    """Moves what lies behind the whole lines of an output into a file of its own."""
    place = _unused(path, "torn")
    size = 0
    with files.create(place) as aside:
        stream.seek(whole)
        while part := stream.read(1 << 20):
            files.write_all(aside, part)
            size += len(part)
        files.fsync(aside)
    files.truncate(stream, whole)
    files.fsync(stream)
    return (
        f"The output ended in a line that was not whole; its {size} bytes are in a file beside it, "
        f"with the ending {place.suffix}, and that record is done again."
    )


def _counted(count: int) -> str:
    """Records with their verb: "1 record is", "2 records are"."""
    return f"{count} record{' is' if count == 1 else 's are'}"
