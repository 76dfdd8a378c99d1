"""The output of a run as its journal: what is finished is on the disk, once, and stays.

Finished records are one write of their whole lines and one fsync; when `append` returns, neither a
kill nor a power cut loses them. The file never holds a record twice, whenever the process ends:
lines are only added, and where lines go or change places, the whole file is written beside, flushed
and renamed.

    OUTPUT            the lines, in the order in which records finished
    OUTPUT.run.json   which run it is (see `manifest`)
    OUTPUT.capt-lock  while a run goes on
    OUTPUT.torn-1     what a kill left of a half line
    OUTPUT.old-1      what --force-new moved away, with its OUTPUT.old-1.run.json
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from capt_local.batch.disk import Files, create
from capt_local.batch.fingerprint import Fingerprint
from capt_local.batch.journal_found import Found, Lines, counted, examine
from capt_local.batch.journal_lines import Kept
from capt_local.batch.journal_place import (
    WHAT,
    check_place,
    clear_leftovers,
    move_aside,
    refused_by_the_disk,
    tear_off,
)
from capt_local.batch.journal_store import JournalBroken, JournalFull, Store
from capt_local.batch.lock import Lock
from capt_local.batch.manifest import RunFacts, RunManifest
from capt_local.batch.output import OK, OutputLine

__all__ = ["Journal", "JournalBroken", "JournalFull"]

_FILES = Files()
_NO_FACTS = RunFacts()
COMPUTED_ELSEWHERE = (
    "This start computes on other devices or with other layers on them than an earlier one (the "
    "manifest lists both): last digits of numbers, and rarely a token, may differ."
)


class Journal:
    """An output that is open for one run. Use it as a context manager, from one thread.

    Attributes:
        done: what each record that has a line ended with: `ok`, or the code of its error.
        notices: what the user should know, a sentence each.
        manifest: which run it is.
    """

    def __init__(
        self, path: Path, files: Files, lock: Lock, store: Store, manifest: RunManifest
    ) -> None:
        """See `open`."""
        self._path, self._files, self._lock, self._store = path, files, lock, store
        self.manifest = manifest
        self.done: dict[str, str] = {id: kept.code for id, kept in store.kept.items()}
        self.notices: list[str] = [lock.notice] if lock.notice else []

    @classmethod
    def open(
        cls,
        path: Path,
        fingerprint: Fingerprint,
        *,
        records: Lines | None = None,
        retry_errors: bool = False,
        force_new: bool = False,
        files: Files = _FILES,
        facts: RunFacts = _NO_FACTS,
        inputs: Sequence[Path] = (),
    ) -> Journal:
        """Begins an output, or goes on with one of the same run.

        Args:
            path: of the output.
            fingerprint: of this run.
            records: line, id and SHA-256 (hexadecimal) of each record as it is now; what is done
                is compared with them before anything is written.
            retry_errors: takes the lines of records without an answer out, so that they are done
                again.
            force_new: moves an output that is there aside instead of going on with it.
            files: operations; for tests.
            facts: what the manifest tells besides the fingerprint.
            inputs: files and folders that the run reads; the output must be none of them.

        Raises:
            UsageError: it cannot be written, is in use, is something else, is of a run with other
                settings, which are named, or of records that have changed. What was there is as
                it was.
            JournalBroken: the disk failed while errors were taken out. No record is lost by it:
                without a line, it is to be done.
        """
        check_place(path, inputs)
        with refused_by_the_disk(), contextlib.ExitStack() as held:
            lock = Lock(path, files, WHAT)
            held.callback(lock.close)
            said = [move_aside(files, path)] if force_new else []
            stream = held.enter_context(files.open(path, os.O_RDWR)) if path.exists() else None
            found = examine(path, stream, fingerprint, records, retry_errors=retry_errors)
            # All that refuses has been asked: from here on it is written.
            clear_leftovers(files, path)
            manifest = _begun(path, files, found, fingerprint, facts)
            stream = stream or held.enter_context(create(files, path))
            said.append(_made_safe(path, files, stream, found))
            held.pop_all()
        store = Store(path, files, stream, found.lines)
        journal = cls(path, files, lock, store, manifest)
        journal._resume(found, retry_errors=retry_errors)
        journal.notices += [*filter(None, said), *found.notices]
        return journal

    def _resume(self, found: Found, *, retry_errors: bool) -> None:
        """Takes out what is done again, then tells of this start; closes where that fails.

        In this order: a manifest that names the input as it is now must have no lines beside it
        that were made from an earlier one.
        """
        try:
            if retry_errors:
                self._drop_errors()
            if found.manifest is not None:
                self._tell(self.manifest)
        except BaseException:
            self.close()
            raise

    def append(self, *lines: OutputLine) -> None:
        """Adds lines, all in one write and one fsync; they are on the disk when this returns.

        Raises:
            JournalFull: there is no room. What was written of them is cut off again.
            JournalBroken: the disk fails, or something else has changed the output.
        """
        self._store.append([(line.id, line.encode() + b"\n", _entry(line)) for line in lines])
        for line in lines:
            self.done[line.id] = line.code

    def put_in_order(self, ids: Iterable[str]) -> bool:
        """Puts the lines into the order of the input, when the work is done.

        Until then they stay in the order in which records finished, so that each is safe at once.

        Args:
            ids: in the order of the input; those without a line are passed over, and lines whose
                record is not among them come last.

        Returns:
            Whether anything had to be moved.

        Raises:
            JournalBroken: the disk fails or is full. All lines are there.
        """
        kept = self._store.kept
        wanted = dict.fromkeys(id for id in ids if id in kept)
        order = [*wanted, *(id for id in kept if id not in wanted)]
        if order == list(kept):
            return False
        self._store.rewrite(order)
        return True

    def tell_provenance(self, provenance: Mapping[str, Any]) -> list[str]:
        """Keeps in the manifest what is known once the models are loaded.

        Args:
            provenance: more about this start (see `RunFacts`); holds no text of records.

        Returns:
            What the user should know: that it is computed elsewhere than before.

        Raises:
            JournalBroken: the disk fails or is full; the output is safe.
        """
        if (manifest := self.manifest.with_more(provenance)) == self.manifest:
            return []
        self._tell(manifest)
        return [COMPUTED_ELSEWHERE] if len(manifest.computed) > 1 else []

    def conclude(self, last: Mapping[str, Any]) -> None:
        """Writes the end of the run into the manifest: counts, the head of the audit log, ...

        Raises:
            JournalBroken: the disk fails or is full; the output is safe.
        """
        self._tell(dataclasses.replace(self.manifest, last=json.loads(json.dumps(dict(last)))))

    def _tell(self, manifest: RunManifest) -> None:
        self.manifest = manifest
        try:
            manifest.write(self._files, self._path)
        except OSError as error:
            self._store.stop(error)

    def close(self) -> None:
        """Closes the output and gives the lock back; safe to call again."""
        self._store.close()
        self._lock.close()

    def __enter__(self) -> Journal:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the output."""
        self.close()

    def _drop_errors(self) -> None:
        """Takes out the lines that hold no answer."""
        kept = self._store.kept
        wanted = [id for id, entry in kept.items() if entry.answered]
        formless = sum(kept[id].code != OK for id in wanted)
        if len(wanted) < len(kept):
            self._store.rewrite(wanted)
        for id in [id for id in self.done if id not in self._store.kept]:
            del self.done[id]
        if formless:
            self.notices.append(
                f"{counted(formless)} answered in a wrong form and not done again: the same "
                "settings would give the same."
            )


def _begun(
    path: Path, files: Files, found: Found, fingerprint: Fingerprint, facts: RunFacts
) -> RunManifest:
    """The manifest of this start. That of a new run is written before its output is there."""
    if found.manifest is not None:
        return found.manifest.resumed(facts)
    manifest = RunManifest.new(fingerprint.as_object(), facts)
    manifest.write(files, path)
    return manifest


def _made_safe(path: Path, files: Files, stream: io.FileIO, found: Found) -> str:
    """Sees to the end of an output that is open; a sentence for the user, or ""."""
    if hasattr(os, "fchmod"):
        os.fchmod(stream.fileno(), 0o600)
    said = tear_off(files, stream, path, found.lines.whole) if found.lines.torn else ""
    # A run that was killed between write and fsync left a line that only this makes safe.
    files.fsync(stream)
    return said


def _entry(line: OutputLine) -> Kept:
    return Kept(
        code=line.code,
        answered=line.response is not None,
        number=line.asked.number,
        sha256=bytes.fromhex(line.asked.sha256),
    )
