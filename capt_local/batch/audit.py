"""A log of runs that cannot be changed unnoticed: each entry holds the hash of the one before.

Ids of runs, digests of models and counts only; no ids of records and no text. What would be a hash
of patients' text (that of the output) is an HMAC with the site's key, or is left out.

The chain shows a changed, added, moved or missing entry, but not that the last ones were cut off or
the whole file was made anew. The head that each run prints and keeps in its manifest does: `check`
looks for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from capt_local.batch.disk import Files, create, write_all
from capt_local.batch.journal_lines import raw_lines
from capt_local.batch.journal_place import tear_off
from capt_local.batch.lock import wait_for_lock
from capt_local.batch.manifest import now_text
from capt_local.errors import UsageError
from capt_local.strict.files import read_bytes
from capt_local.strict.json import parse_object
from capt_local.strict.problems import NotReadable

WHAT = "The audit log"
BEFORE_THE_FIRST = "0" * 64
_FILES = Files()
_SHORTEST_KEY = 16
_LARGEST_KEY = 1 << 16
_LONGEST = 1 << 20  # bytes of a line
_CHUNK = 1 << 20


class Event(StrEnum):
    """What an entry is about."""

    START = "start"
    END = "end"


@dataclass(frozen=True, slots=True)
class Entry:
    """What is noted about a run.

    Attributes:
        event: its start or its end.
        run: its id, that of its manifest.
        fingerprint: digest of its settings.
        bundle: id of the bundle.
        bundle_sha256: digest of its manifest.
        shard: `i/n`, or None.
        counts: records by `records`, `ok` and the codes of errors.
        exit_status: of the process; at the end alone.
        output_hmac: see `output_hmac`; at the end alone, and with a site key.
    """

    event: Event
    run: str
    fingerprint: str
    bundle: str
    bundle_sha256: str | None
    shard: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    exit_status: int | None = None
    output_hmac: str | None = None

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "event": str(self.event),
            "run": self.run,
            "fingerprint": self.fingerprint,
            "bundle": self.bundle,
            "bundle_sha256": self.bundle_sha256,
            "shard": self.shard,
            "counts": {name: int(count) for name, count in sorted(self.counts.items())},
            "exit_status": self.exit_status,
            "output_hmac": self.output_hmac,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a log turned out to be.

    Attributes:
        entries: those before the first bad one, as they stand in the file.
        head: hash of the last of them.
        bad: number of the first bad entry, from 1; None for a whole log.
        problem: what is wrong with it.
        torn: bytes at the end of the file that a kill left of an entry; not an error.
        whole: bytes of the entries.
    """

    entries: tuple[Mapping[str, Any], ...]
    head: str
    bad: int | None = None
    problem: str = ""
    torn: int = 0
    whole: int = 0


class AuditLog:
    """A log that entries are added to; several runs may share one.

    Args:
        path: of the log; made when it is not there.
        files: operations; for tests.

    Attributes:
        notices: what the user should know.

    Raises:
        UsageError: it cannot be written, is something else, or has a bad entry.
    """

    def __init__(self, path: Path, files: Files = _FILES) -> None:
        """Tries the log out: what is wrong with it is found before a run begins."""
        self._path, self._files = path, files
        self.notices: list[str] = []
        with self._opened() as stream:
            self._examined(stream)

    def append(self, entry: Entry) -> str:
        """Adds an entry; it is on the disk when this returns.

        Returns:
            The new head of the chain: to be printed, and kept apart from the log.

        Raises:
            UsageError: the disk is full or fails, or the log was changed.
        """
        with self._opened() as stream:
            found = self._examined(stream)
            value = {
                "n": len(found.entries) + 1,
                "time": now_text(),
                **entry.as_object(),
                "previous": found.head,
            }
            value["hash"] = _hash(value)
            try:
                stream.seek(found.whole)
                write_all(self._files, stream, _line(value))
                self._files.fsync(stream)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._files.truncate(stream, found.whole)
                raise
        return str(value["hash"])

    @contextlib.contextmanager
    def _opened(self) -> Iterator[io.FileIO]:
        try:
            with self._stream() as stream:
                wait_for_lock(stream, WHAT)
                yield stream
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no access"
            raise UsageError(f"{WHAT} cannot be written: {reason}.") from None

    def _stream(self) -> io.FileIO:
        if os.path.lexists(self._path):
            if not self._path.is_file():
                raise UsageError(f"{WHAT} is not a regular file. Name another one.")
            return self._files.open(self._path, os.O_RDWR)
        try:
            return create(self._files, self._path)
        except FileExistsError:  # another run made it just now
            return self._files.open(self._path, os.O_RDWR)

    def _examined(self, stream: io.FileIO) -> Verdict:
        """The log as it is; a torn end is moved aside."""
        found = _examine(stream)
        if found.bad is not None:
            raise UsageError(
                f"{WHAT}: entry {found.bad} is bad ({found.problem}), so nothing is added. See "
                "'capt-local audit verify', and name a new log."
            )
        if found.torn:
            tear_off(self._files, stream, self._path, found.whole)
            self.notices.append("The audit log ended in half an entry, which is kept beside it.")
        return found


def verify(path: Path) -> Verdict:
    """Reads a log and checks each entry.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        if not path.is_file():
            reason = "it is not a file" if path.exists() else "there is no such file"
            raise UsageError(f"{WHAT} cannot be read: {reason}.")
        with path.open("rb", buffering=0) as stream:
            return _examine(stream)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no access"
        raise UsageError(f"{WHAT} cannot be read: {reason}.") from None


def with_head(found: Verdict, head: str) -> Verdict:
    """The same verdict, unless a head that was kept elsewhere is not in the log.

    Args:
        found: of a log.
        head: hash that a run printed.
    """
    if found.bad is not None or head in {str(entry["hash"]) for entry in found.entries}:
        return found
    problem = "no entry has the head that was given: entries were cut off, or the log made anew"
    return replace(found, bad=len(found.entries) + 1, problem=problem)


def read_key(path: Path) -> bytes:
    """The site's key.

    Raises:
        UsageError: it cannot be read, or is too short to be one.
    """
    what = "The site key (--site-key)"
    key = read_bytes(path, what, largest=_LARGEST_KEY).strip()
    if len(key) < _SHORTEST_KEY:
        raise UsageError(f"{what} has less than {_SHORTEST_KEY} bytes.")
    return key


def output_hmac(path: Path, key: bytes) -> str:
    """HMAC-SHA256 of a file; nobody without the key can tell by it what the file holds.

    Raises:
        OSError: it cannot be read.
    """
    made = hmac.new(key, digestmod="sha256")
    with path.open("rb") as stream:
        while part := stream.read(_CHUNK):
            made.update(part)
    return made.hexdigest()


def _examine(stream: io.FileIO) -> Verdict:
    entries: list[Mapping[str, Any]] = []
    head, whole = BEFORE_THE_FIRST, 0
    for number, line in enumerate(raw_lines(stream, _LONGEST), 1):
        if not line.endswith(b"\n") and _begins_as_ours(line, number):
            return Verdict(tuple(entries), head, torn=len(line), whole=whole)
        value, problem = _checked(line, number, head)
        if problem:
            return Verdict(tuple(entries), head, number, problem, whole=whole)
        entries.append(value)
        head, whole = value["hash"], whole + len(line)
    return Verdict(tuple(entries), head, whole=whole)


def _begins_as_ours(line: bytes, number: int) -> bool:
    """Whether half a line is the beginning of an entry; nothing else is ever cut off."""
    if len(line) == _LONGEST:
        return False
    front = f'{{"n": {number}, "time": "'.encode()
    return line[: len(front)] == front[: len(line)]


def _checked(line: bytes, number: int, head: str) -> tuple[dict[str, Any], str]:
    """An entry, and what is wrong with it; "" for nothing."""
    try:
        value: dict[str, Any] = parse_object(line)
    except NotReadable as error:
        return {}, str(error)
    if not isinstance(value.get("hash"), str) or "event" not in value:
        return value, "not an entry of an audit log"
    if value.get("previous") != head:
        return value, "it does not follow the entry before it"
    if value["hash"] != _hash(value) or line != _line(value):
        return value, "it was changed"
    if value.get("n") != number:
        return value, "its number is not its place"
    return value, ""


def _hash(value: Mapping[str, Any]) -> str:
    """Of all of an entry but its hash; `previous` ties it to the one before."""
    rest = {name: item for name, item in value.items() if name != "hash"}
    return hashlib.sha256(_line(rest)).hexdigest()


def _line(value: Mapping[str, Any]) -> bytes:
    """The one form of an entry: a space more is a change too."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False).encode() + b"\n"
