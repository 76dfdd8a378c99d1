"""The entries of a batch run in the log of runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capt_local.batch.audit import AuditLog, Entry, Event, output_hmac, read_key
from capt_local.batch.manifest import RunManifest
from capt_local.batch.output import OK


class Audit:
    """Adds two entries: one when the run begins, one when it ends.

    Args:
        path: of the log.
        key: file of the site's key; None for none.

    Attributes:
        notices: what the user should know.

    Raises:
        UsageError: the log cannot be written or is broken, or the key cannot be read.
    """

    def __init__(self, path: Path, key: Path | None) -> None:
        """Tries the log out."""
        self._key = None if key is None else read_key(key)
        self._log = AuditLog(path)
        self._common: dict[str, Any] = {}
        self.notices = self._log.notices

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
                output_hmac=None if self._key is None else output_hmac(output, self._key),
                **self._common,
            )
        )
