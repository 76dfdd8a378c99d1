"""`--audit FILE`: a log of runs, one line when a run starts and one when it ends.

JSON Lines that are only appended to. Ids of runs, digests of settings and bundle, and counts; no
ids of records, no text and no hash of it. Several runs may share a log: each entry is one `write`
to a file opened with O_APPEND.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capt_local.batch.manifest import RunManifest, now_text
from capt_local.batch.output import OK
from capt_local.errors import UsageError

_NAME = "The audit log (--audit)"
_BEGIN = b'{"time": "'


class AuditLog:
    """Appends the entries of one run.

    Args:
        path: of the log; it is created with mode 0600 if it does not exist.

    Raises:
        UsageError: the log cannot be written, or is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        """Opens the log once, so that a wrong path is reported before the run starts."""
        self._path = path
        self._run: dict[str, Any] = {}
        self._append(b"")

    def start(self, manifest: RunManifest, records: int) -> None:
        """Appends the start of a run.

        Args:
            manifest: of the run.
            records: how many it is to answer now.
        """
        bundle = manifest.fingerprint["bundle"]
        self._run = {
            "run": manifest.run,
            "fingerprint_sha256": manifest.digest,
            "bundle": bundle["id"],
            "bundle_manifest_sha256": bundle["manifest_sha256"],
        }
        self._entry("start", {"records": records}, None)

    def end(self, summary: Mapping[str, Any]) -> None:
        """Appends the end of a run; `summary` as it stands in the run's manifest."""
        counts = {"records": summary["records"], OK: summary["done"], **summary["failed"]}
        self._entry("end", counts, summary["exit_code"])

    def _entry(self, event: str, counts: Mapping[str, int], code: int | None) -> None:
        entry = {"time": now_text(), "event": event, **self._run, "counts": counts}
        self._append(json.dumps({**entry, "exit_code": code}).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            with open(os.open(self._path, flags, 0o600), "rb+", buffering=0) as log:
                found = os.fstat(log.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise UsageError(f"{_NAME} is not a regular file.")
                if not _BEGIN.startswith(os.pread(log.fileno(), len(_BEGIN), 0)):
                    raise UsageError(f"{_NAME} holds something else. Name another file.")
                # After a crash the last line may lack its end: do not continue it.
                if line and found.st_size and os.pread(log.fileno(), 1, found.st_size - 1) != b"\n":
                    line = b"\n" + line
                if line and log.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(log.fileno())
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            reason = getattr(error, "strerror", None) or "no access"
            raise UsageError(f"{_NAME} cannot be written: {reason}.") from None
