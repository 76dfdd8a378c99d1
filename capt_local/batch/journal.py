"""The output of a run as its journal: what is finished is on the disk, once, and stays.

One finished record is one write of its whole line and one fsync; when `append` returns, neither a
kill nor a power cut loses it. The file never holds a record twice, whenever the process ends: lines
are only added, and where lines go or change places, the whole file is written beside, flushed and
renamed.

    OUTPUT            the lines, in the order in which records finished
    OUTPUT.run.json   which run it is (see `manifest`)
    OUTPUT.capt-lock  while a run goes on
    OUTPUT.torn-1     what a kill left of a half line
    OUTPUT.old-1      what --force-new moved away, with its OUTPUT.old-1.run.json
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from capt_local.batch.disk import Files, create
from capt_local.batch.fingerprint import Fingerprint, differing, told
from capt_local.batch.journal_lines import Kept, scan
from capt_local.batch.journal_place import (
    WHAT,
    check_place,
    clear_leftovers,
    holds_something,
    move_aside,
    refusal,
    tear_off,
)
from capt_local.batch.journal_store import JournalBroken, JournalFull, Store
from capt_local.batch.lock import Lock
from capt_local.batch.manifest import RunFacts, RunManifest, read_manifest
from capt_local.batch.output import OK, OutputLine
from capt_local.errors import UsageError

__all__ = ["Journal", "JournalBroken", "JournalFull"]

_FILES = Files()
_NO_FACTS = RunFacts()


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
            retry_errors: takes the lines of records without an answer out, so that they are done
                again.
            force_new: moves an output that is there aside instead of going on with it.
            files: operations; for tests.
            facts: what the manifest tells besides the fingerprint.
            inputs: files and folders that the run reads; the output must be none of them.

        Raises:
            UsageError: it cannot be written, is in use, is something else, or is of a run with
                other settings, which are named. What was there is as it was.
        """
        check_place(path, inputs)
        try:
            lock = Lock(path, files, WHAT)
        except OSError as error:
            raise refusal(error) from None
        try:
            clear_leftovers(files, path)
            said = move_aside(files, path) if force_new else ""
            journal = cls._opened(path, fingerprint, files, lock, facts)
        except BaseException as error:
            lock.close()
            raise (refusal(error) if isinstance(error, OSError) else error) from None
        journal.notices += [said] if said else []
        if retry_errors:
            journal._drop_errors()
        return journal

    @classmethod
    def _opened(
        cls, path: Path, fingerprint: Fingerprint, files: Files, lock: Lock, facts: RunFacts
    ) -> Journal:
        before = read_manifest(path, WHAT)
        there = holds_something(path)
        if there:
            manifest = _same_run(before, fingerprint).resumed(facts)
        else:
            manifest = RunManifest.new(fingerprint.as_object(), facts)
            manifest.write(files, path)
        stream = files.open(path, os.O_RDWR) if path.exists() else create(files, path)
        try:
            store, said = _store(path, files, stream, manifest.digest)
            if there:
                manifest.write(files, path)
        except BaseException:
            stream.close()
            raise
        journal = cls(path, files, lock, store, manifest)
        journal.notices += [said] if said else []
        return journal

    def append(self, line: OutputLine) -> None:
        """Adds the line of a record; it is on the disk when this returns.

        Raises:
            JournalFull: there is no room. What was written of the line is cut off again.
            JournalBroken: the disk fails, or something else has changed the output.
        """
        entry = Kept(
            code=line.code,
            answered=line.response is not None,
            number=line.asked.number,
            sha256=bytes.fromhex(line.asked.sha256),
        )
        self._store.append(line.id, line.encode() + b"\n", entry)
        self.done[line.id] = line.code

    def check_records(self, records: Iterable[tuple[int, str, str]]) -> None:
        """Compares what is done with the input as it is now.

        Args:
            records: line, id and SHA-256 (hexadecimal) of each record.

        Raises:
            UsageError: a record has changed since its line was written.
        """
        changed, seen = [], 0
        for number, id, sha256 in records:
            kept = self._store.kept.get(id)
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
        if missing := len(self._store.kept) - seen:
            self.notices.append(f"{_records(missing)} in the output and no longer in the input.")

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

    def tell_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Keeps in the manifest what is known once the models are loaded.

        Args:
            provenance: see `RunFacts`; holds no text of records. What is as at the last start
                is not kept twice.

        Raises:
            JournalBroken: the disk fails or is full; the output is safe.
        """
        if (manifest := self.manifest.with_provenance(provenance)) != self.manifest:
            self._tell(manifest)

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
        """Takes out the lines that hold no answer; closes the journal where that fails.

        No record is lost by it, whenever it ends: without a line, it is to be done.
        """
        kept = self._store.kept
        wanted = [id for id, entry in kept.items() if entry.answered]
        formless = sum(kept[id].code != OK for id in wanted)
        try:
            if len(wanted) < len(kept):
                self._store.rewrite(wanted)
        except BaseException:
            self.close()
            raise
        for id in [id for id in self.done if id not in self._store.kept]:
            del self.done[id]
        if formless:
            self.notices.append(
                f"{_records(formless)} answered in a wrong form and not done again: the same "
                "settings would give the same."
            )


def _store(path: Path, files: Files, stream: io.FileIO, run: str) -> tuple[Store, str]:
    """The lines of an output that is open, and what there is to say about its end."""
    if hasattr(os, "fchmod"):
        os.fchmod(stream.fileno(), 0o600)
    found = scan(stream, run, WHAT)
    said = tear_off(files, stream, path, found.whole) if found.torn else ""
    # A run that was killed between write and fsync left a line that only this makes safe.
    files.fsync(stream)
    return Store(path, files, stream, found), said


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


def _records(count: int) -> str:
    return f"{count} record{' is' if count == 1 else 's are'}"
