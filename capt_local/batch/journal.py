"""The output of a run as its journal: each finished record is stored durably and exactly once.

Lines are only appended (`line_file`), so the file never holds a record twice; to remove lines, the
whole file is rewritten to a temporary file, flushed and renamed. A refused start changes nothing.

    OUTPUT            the lines, in the order in which records finished
    OUTPUT.run.json   which run it is (`manifest`)
    OUTPUT.torn-1     a half line that a kill left, moved aside
    OUTPUT.old-1      what --force-new moved aside, with its OUTPUT.old-1.run.json
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from capt_local.batch.output import (
    ENDING,
    OK,
    Fingerprint,
    OutputLine,
    RunManifest,
    differences,
    is_sealed,
    manifest_path,
    plain,
    time_text,
)
from capt_local.errors import UsageError
from capt_local.line_file import DiskFailed, LineFile, disk_failed, put, read_file, rename
from capt_local.strict_json import ParseError, parse_object

LABEL = "The output (-o)"
NO_LOCKS = (
    "This file system has no locks: nothing keeps a second run from writing to the same output."
)
OTHER_DEVICES = (
    "This start computes on other devices, or with other layers on them, than an earlier one (the "
    "manifest lists both): last digits of numbers, and rarely a token, may differ."
)
_LARGEST_MANIFEST = 64 << 20
Lines = Iterable[tuple[int, str, str]]  # number, id and SHA-256 of each record of the input


def read_manifest(output: Path) -> RunManifest | None:
    """The manifest beside an output, None where there is none. Raises UsageError."""
    try:
        data = read_file(manifest_path(output), _LARGEST_MANIFEST)
    except OSError as error:
        reason = error.strerror or "no access"
        raise UsageError(f"{LABEL}: its manifest (.{ENDING}) cannot be read: {reason}.") from None
    return None if data is None else RunManifest.decode(data, LABEL)


class Entry(NamedTuple):
    """A line of the output, without its text."""

    code: str  # `ok`, or that of its error
    answered: bool  # one that breaks its schema is answer and error
    sha256: str  # of the record in the input


def _scan(file: LineFile, manifest: RunManifest) -> tuple[dict[str, Entry], int]:
    """The lines of an output by their records, and their bytes; behind them it may be torn."""
    entries: dict[str, Entry] = {}
    whole = size = 0
    broken: int | None = None

    def refuse(number: int, problem: str) -> NoReturn:
        raise UsageError(
            f"{LABEL}, line {number}: it {problem}. Nothing was written. Name a new file, or move "
            "this one aside with --force-new."
        )

    for number, data in enumerate(file.lines(), 1):
        size += len(data)
        try:
            line = parse_object(data) if data.endswith(b"\n") else {}
        except ParseError:
            line = {}
        if "sha256" not in line:
            broken = broken or number
            continue
        if broken is not None:
            refuse(broken, "is not a result of capt-local batch")
        if not is_sealed(data):
            refuse(number, "was edited: it does not match the digest at its end")
        provenance: Any = line.get("provenance")
        error: Any = line.get("error")
        try:  # anybody can compute its digest
            code, run = str(error["code"]) if error else OK, provenance["run"]
            entry = Entry(code, line["response"] is not None, str(provenance["record"]["sha256"]))
        except (KeyError, TypeError):
            refuse(number, "is not a result of capt-local batch")
        if run != manifest.fingerprint_sha256:
            refuse(number, "is of a run with other settings")
        if (id := str(line.get("id"))) in entries:
            refuse(number, "is of a record that an earlier line is of")
        entries[id], whole = entry, size
    return entries, whole


def _manifest_of(path: Path, fingerprint: Fingerprint) -> RunManifest:
    """The manifest of an output, which must be of the run that is to go on with it."""
    manifest = read_manifest(path)
    if manifest is None:
        raise UsageError(
            f"{LABEL} holds something that is not of capt-local batch, or has lost its manifest "
            f"(.{ENDING}). Nothing was written; name a new file."
        )
    if names := differences(manifest.fingerprint, fingerprint):
        raise UsageError(
            f"{LABEL} is of a run with other settings; what differs: {names}. Use the same "
            "settings, name a new file, or move this one aside with --force-new."
        )
    return manifest


def _compare(done: Mapping[str, Entry], records: Lines) -> list[str]:
    """Refuses records that have changed since their line was written; notes those that are gone."""
    changed, seen = [], 0
    for number, id, sha256 in records:
        if (entry := done.get(id)) is not None:
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
    gone = len(done) - seen
    return [f"{_counted(gone)} in the output and no longer in the input."] if gone else []


class OutputJournal:
    """An output that is open for one run. Use it as a context manager, from one thread.

    Attributes:
        done: `ok` or the code of the error of each record that has a line.
        notices: sentences for the user.
    """

    def __init__(
        self, path: Path, file: LineFile, manifest: RunManifest, notices: list[str]
    ) -> None:
        self._path, self._file = path, file
        self.manifest, self.notices = manifest, notices
        self.done: dict[str, str] = {}

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
    ) -> OutputJournal:
        """Creates an output, or resumes one of the same run.

        What is done is compared with `records`, those of the input as it is now. `input` and
        `provenance` are what the manifest says of the input and of this start. `retry_errors`
        removes the lines of records without an answer, so that they are done again; `force_new`
        moves an existing output aside instead of going on with it.

        Raises:
            UsageError: it cannot be written, is in use, is something else, is of a run with other
                settings, which are named, or of records that have changed. Nothing was changed.
            DiskFailed: the disk failed while errors were removed. No answer is lost by it.
        """
        with contextlib.ExitStack() as opened:
            try:
                aside = _move_aside(path) if force_new else []
                file = opened.enter_context(contextlib.closing(LineFile(path, LABEL)))
                manifest, entries, whole = RunManifest.new(fingerprint), dict[str, Entry](), 0
                if continues_text := file.size > 0:
                    manifest = _manifest_of(path, fingerprint)
                    entries, whole = _scan(file, manifest)
                kept = {
                    id: entry for id, entry in entries.items() if entry.answered or not retry_errors
                }
                notices = aside if file.locked else [NO_LOCKS, *aside]
                notices += _compare(kept, records) if records is not None else []
                # All checks have passed: from here on files are written.
                manifest.input = plain(input or {})
                manifest.starts.append({"time": time_text(time.time()), **plain(provenance or {})})
                if not continues_text:
                    put(manifest_path(path), manifest.encode())
                if whole < file.size:
                    notices.append(_move_torn_end(path, file, whole))
                # A run killed between write and fsync has left a line that is not durable yet.
                file.sync()
            except OSError as error:
                reason = error.strerror or "no access"
                raise UsageError(
                    f"{LABEL} cannot be written: {reason}. What was there is unchanged."
                ) from None
            journal = cls(path, file, manifest, notices)
            # Error lines may stem from an earlier input, so they are removed before the manifest
            # names the present one.
            if len(kept) < len(entries):
                file.rewrite(
                    line for line, id in zip(file.lines(), entries, strict=True) if id in kept
                )
            journal.done = {id: entry.code for id, entry in kept.items()}
            invalid = sum(code != OK for code in journal.done.values())
            if retry_errors and invalid:
                notices.append(
                    f"{_counted(invalid)} answered in a wrong form and not done again: the same "
                    "settings would give the same."
                )
            if continues_text:
                journal._write_manifest()
            opened.pop_all()
        return journal

    def append(self, *lines: OutputLine) -> None:
        """Appends lines, all in one write and one fsync; they are on the disk when this returns.

        Raises:
            DiskFailed: there is no room, the disk fails, or something else has changed the output.
                What was written of them is cut off again.
            ValueError: a record has a line already.
        """
        codes = {line.record.id: line.code for line in lines}
        if len(codes) < len(lines) or not self.done.keys().isdisjoint(codes):
            raise ValueError("a record has a line already")
        try:
            self._file.append(b"".join(line.encode() + b"\n" for line in lines))
        except DiskFailed as error:
            raise DiskFailed(
                f"{error} {_counted(len(self.done))} safe; the same command goes on behind them."
            ) from None
        self.done |= codes

    def set_loaded(self, models: Mapping[str, Any]) -> list[str]:
        """Adds to the manifest how the models were loaded, if that has changed.

        Returns sentences for the user: whether this start computes on other devices than before.
        Raises DiskFailed; the output is safe.
        """
        start, now = self.manifest.starts[-1], plain(models)
        if start.get("loaded") == now:
            return []
        if "loaded" in start:  # a worker that was started again found other devices
            start = {**start, "time": time_text(time.time())}
            self.manifest.starts.append(start)
        start["loaded"] = now
        self._write_manifest()
        starts = (each for each in self.manifest.starts if "loaded" in each)
        used = [(each.get("devices"), each["loaded"]) for each in starts]
        return [OTHER_DEVICES] if any(each != used[0] for each in used) else []

    def conclude(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary of this start into the manifest. Raises DiskFailed."""
        self.manifest.starts[-1]["summary"] = plain(summary)
        self._write_manifest()

    def close(self) -> None:
        """Closes the output and releases the lock; safe to call again."""
        self._file.close()

    def __enter__(self) -> OutputJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_manifest(self) -> None:
        try:
            put(manifest_path(self._path), self.manifest.encode())
        except OSError as error:
            raise disk_failed(f"{LABEL}, its manifest", error) from None


def _unused(path: Path, word: str) -> Path:
    """The first of `path`.WORD-1, `path`.WORD-2, ... that does not exist."""
    number = 1
    while os.path.lexists(found := path.with_name(f"{path.name}.{word}-{number}")):
        number += 1
    return found


def _move_aside(path: Path) -> list[str]:
    """Gives an old output and its manifest another name; nothing is deleted."""
    manifest, old = manifest_path(path), _unused(path, "old")
    data = read_file(manifest, _LARGEST_MANIFEST)
    if data is None and (not path.exists() or not path.stat().st_size):
        return []
    with contextlib.ExitStack() as stack:
        if path.exists():  # refused while a run writes it
            stack.enter_context(contextlib.closing(LineFile(path, LABEL)))
        if data is not None:  # copied first: whenever a kill comes, no output is without its own
            put(manifest_path(old), data)
        if path.exists():
            rename(path, old)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(manifest)
    return [f"The output that was there is beside the new one, with the ending {old.suffix}."]


def _move_torn_end(path: Path, file: LineFile, whole: int) -> str:
    """Moves the torn end of an output into a file of its own; returns a notice."""
    aside, torn = _unused(path, "torn"), file.size - whole
    put(aside, file.tail(whole))
    file.cut(whole)
    return (
        f"The output ended in a line that was not whole; its {torn} bytes are in a file "
        f"beside it, with the ending {aside.suffix}, and that record is done again."
    )


def _counted(count: int) -> str:
    """Records with their verb: "1 record is", "2 records are"."""
    return f"{count} record{' is' if count == 1 else 's are'}"
