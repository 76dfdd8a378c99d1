"""`--audit FILE`: a log of runs, one line when a run starts and one when it ends.

JSON Lines that are only appended to: ids of runs, digests of settings and bundle, and counts; no
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

from capt_local.batch.manifest import RunManifest, now_text
from capt_local.errors import UsageError

_NAME = "The audit log (--audit)"
_BEGIN = b'{"time": "'


def append_audit(
    path: Path,
    manifest: RunManifest | None = None,
    event: str = "",
    counts: Mapping[str, int] | None = None,
    code: int | None = None,
) -> None:
    """Appends an entry; without a manifest it only finds out whether the log can be written.

    Args:
        path: of the log; it is created with mode 0600 if it does not exist.
        manifest: of the run.
        event: "start" or "end".
        counts: of records.
        code: the exit code, at the end.

    Raises:
        UsageError: the log cannot be written, is not a regular file, or holds something else.
    """
    line = b""
    if manifest is not None:
        bundle = manifest.fingerprint["bundle"]
        entry = {
            "time": now_text(), "event": event, "run": manifest.run,
            "fingerprint_sha256": manifest.fingerprint_sha256, "bundle": bundle["id"],
            "bundle_manifest_sha256": bundle["manifest_sha256"], "counts": dict(counts or {}),
            "exit_code": code,
        }  # fmt: skip
        line = json.dumps(entry).encode() + b"\n"
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with open(os.open(path, flags, 0o600), "rb+", buffering=0) as log:
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
