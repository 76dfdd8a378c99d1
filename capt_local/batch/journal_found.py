"""What lies where an output is to be: of which run it is, its lines, and whether the run may go on.

Nothing is written here, so whatever is refused stays as it was.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from capt_local.batch.fingerprint import Fingerprint, differing, told
from capt_local.batch.journal_lines import Kept, Scan, scan
from capt_local.batch.journal_place import WHAT, holds_something, refused_by_the_disk
from capt_local.batch.lock import in_use
from capt_local.batch.manifest import RunManifest, read_manifest
from capt_local.errors import UsageError

Lines = Iterable[tuple[int, str, str]]


@dataclass(frozen=True, slots=True)
class Found:
    """What lies there.

    Attributes:
        manifest: of the run that goes on; None where one begins.
        lines: of the output.
        notices: what the user should know.
    """

    manifest: RunManifest | None
    lines: Scan
    notices: tuple[str, ...] = ()

    def done(self, *, retry_errors: bool) -> dict[str, Kept]:
        """The lines that stay, by id."""
        return {
            id: kept for id, kept in self.lines.kept.items() if kept.answered or not retry_errors
        }


def examine(
    path: Path,
    stream: io.FileIO | None,
    fingerprint: Fingerprint,
    records: Lines | None = None,
    *,
    retry_errors: bool = False,
) -> Found:
    """Reads an output and compares it with the run that is to go on with it.

    Args:
        path: of the output.
        stream: it, open for reading; None where it is not there.
        fingerprint: of the run.
        records: line, id and SHA-256 (hexadecimal) of each record of the input as it is now; None
            compares no record.
        retry_errors: whether records without an answer are to be done again.

    Raises:
        UsageError: it is of another run or of none, or a record has changed since its line was
            written.
        OSError: as the system does.
    """
    if stream is None or not holds_something(path):
        return Found(None, Scan({}, 0, 0))
    manifest = _same_run(read_manifest(path, WHAT), fingerprint)
    found = Found(manifest, scan(stream, manifest.digest, WHAT))
    if records is None:
        return found
    notices = _compared(found.done(retry_errors=retry_errors), records)
    return Found(manifest, found.lines, notices)


def look(
    path: Path,
    fingerprint: Fingerprint,
    records: Lines,
    *,
    retry_errors: bool = False,
    new: bool = False,
) -> Found:
    """What a run would find there, without a lock, and with nothing written.

    Args:
        path: of the output.
        fingerprint: of the run.
        records: see `examine`.
        retry_errors: likewise.
        new: whether what is there would be moved aside.

    Raises:
        UsageError: as `examine`; or it cannot be written, or a run is writing it.
    """
    if in_use(path):
        raise UsageError(f"{WHAT} is being written by another run.")
    needed = [path.parent, path] if path.exists() else [path.parent]
    if not all(os.access(place, os.W_OK) for place in needed):
        raise UsageError(f"{WHAT} cannot be written: {os.strerror(errno.EACCES)}.")
    if new or not path.exists():
        return Found(None, Scan({}, 0, 0))
    with refused_by_the_disk(), path.open("rb", buffering=0) as stream:
        return examine(path, stream, fingerprint, records, retry_errors=retry_errors)


def _same_run(before: RunManifest | None, fingerprint: Fingerprint) -> RunManifest:
    if before is None:
        raise UsageError(
            f"{WHAT} holds something that is not of capt-local batch, or has lost its manifest "
            "(.run.json). Nothing was written; name a new file."
        )
    if names := differing(before.fingerprint, fingerprint.as_object()):
        raise UsageError(
            f"{WHAT} is of a run with other settings; what differs: {told(names)}. Use the same "
            "settings, name a new file, or move this one aside with --force-new."
        )
    return before


def _compared(done: Mapping[str, Kept], records: Lines) -> tuple[str, ...]:
    """Refuses records that have changed; tells of lines whose records are gone."""
    changed, seen = [], 0
    for number, id, sha256 in records:
        kept = done.get(id)
        if kept is not None:
            seen += 1
            if kept.sha256.hex() != sha256:
                changed.append(number)
    if changed:
        more = f", and {len(changed) - 1} more" if changed[1:] else ""
        raise UsageError(
            f"The input, line {changed[0]}{more}: changed since its line was written. Give "
            "changed records new ids (or use --retry-errors where they had failed), or begin "
            "again with --force-new."
        )
    missing = len(done) - seen
    return (f"{counted(missing)} in the output and no longer in the input.",) if missing else ()


def counted(count: int) -> str:
    """Records with their verb: "1 record is", "2 records are"."""
    return f"{count} record{' is' if count == 1 else 's are'}"
