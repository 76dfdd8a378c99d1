"""The entries of a batch run in the log of runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capt_local.batch.audit import AuditLog, Entry, Event
from capt_local.batch.audit_key import output_hmac, read_key
from capt_local.batch.journal_place import WHAT
from capt_local.batch.manifest import RunManifest
from capt_local.batch.output import OK
from capt_local.errors import UsageError


class Audit:
    """Adds two entries: one when the run begins, one when it ends.

    Args:
        path: of the log.
        key: file of the site's key; None for none.

    Attributes:
        unread: why there is no HMAC of the output though there is a key; None where there is one.

    Raises:
        UsageError: the log cannot be written or is broken, or the key cannot be read.
    """

    def __init__(self, path: Path, key: Path | None) -> None:
        """Tries the log out."""
        self._key = None if key is None else read_key(key)
        self._log = AuditLog(path)
        self._common: dict[str, Any] = {}
        self._told = 0
        self.unread: UsageError | None = None

    def fresh(self) -> list[str]:
        """What the user should know and has not been told."""
        found = self._log.notices[self._told :]
        self._told += len(found)
        return found

    def begin(self, manifest: RunManifest, records: int) -> None:
        """Notes the start.

        Args:
            manifest: of the run.
            records: that are to be done now.
        """
        bundle = manifest.fingerprint["bundle"]
        self._common = {
            "run": manifest.run,
            "fingerprint": manifest.digest,
            "bundle": bundle["id"],
            "bundle_sha256": bundle["manifest_sha256"],
            "shard": None if manifest.shard is None else str(manifest.shard),
        }
        self._log.append(Entry(Event.START, counts={"records": records}, **self._common))

    def end(self, summary: Mapping[str, Any], output: Path) -> str:
        """Notes the end.

        Args:
            summary: of the run.
            output: its lines.

        Returns:
            The head of the log.
        """
        counts = {"records": summary["records"], OK: summary["done"], **summary["failed"]}
        return self._log.append(
            Entry(
                Event.END,
                counts=counts,
                exit_status=summary["exit_code"],
                output_hmac=self._hmac(output),
                **self._common,
            )
        )

    def _hmac(self, output: Path) -> str | None:
        if self._key is None:
            return None
        try:
            return output_hmac(output, self._key)
        except OSError as error:
            reason = error.strerror or "no access"
            self.unread = UsageError(
                f"{WHAT} cannot be read at the end of the run: {reason}. The audit log has the end "
                "of the run, without an HMAC of the output."
            )
            return None
