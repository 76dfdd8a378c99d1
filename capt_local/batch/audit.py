"""A log of runs that cannot be changed unnoticed: each entry holds the hash of the one before.

Ids of runs, digests of models and counts only; no ids of records and no text. What would be a hash
of patients' text (that of the output) is an HMAC with the site's key, or is left out.

The chain shows a changed, added, moved or missing entry, but not that the last ones were cut off or
the whole file was made anew. The head that each run prints and keeps in its manifest does: `check`
looks for it.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from capt_local.batch.audit_chain import WHAT, Verdict, examine, hash_of, line_of
from capt_local.batch.disk import Files, create, write_all
from capt_local.batch.journal_place import tear_off
from capt_local.batch.lock import wait_for_lock
from capt_local.batch.manifest import now_text
from capt_local.errors import UsageError

_FILES = Files()
_NO_LOCKS = (
    "The file system of the audit log has no locks: nothing keeps two runs from adding to it at "
    "the same moment."
)


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
            value["hash"] = hash_of(value)
            try:
                stream.seek(found.whole)
                write_all(self._files, stream, line_of(value))
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
                if not wait_for_lock(stream, WHAT) and _NO_LOCKS not in self.notices:
                    self.notices.append(_NO_LOCKS)
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
        found = examine(stream)
        if found.bad is not None:
            raise UsageError(
                f"{WHAT}: entry {found.bad} is bad ({found.problem}), so nothing is added. See "
                "'capt-local audit verify', and name a new log."
            )
        if found.torn:
            tear_off(self._files, stream, self._path, found.whole)
            self.notices.append("The audit log ended in half an entry, which is kept beside it.")
        return found
