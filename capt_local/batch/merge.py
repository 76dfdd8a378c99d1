"""Shards put together: the output that one process would have written, in the order of the input.

The shards stay as they are. They are merged when they belong to one run (the same fingerprint,
apart from the shard, and the same input), are all there, and hold each record exactly once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capt_local.batch.disk import NEW, Files, create, is_full, sibling, write_all
from capt_local.batch.fingerprint import differing, told
from capt_local.batch.journal_lines import Kept, read_line, scan
from capt_local.batch.journal_place import WHAT, check_place, holds_something, refusal
from capt_local.batch.lock import Lock
from capt_local.batch.manifest import RunFacts, RunManifest, read_manifest
from capt_local.batch.output import OK
from capt_local.batch.shard import Shard
from capt_local.errors import UsageError

_FILES = Files()


@dataclass(frozen=True, slots=True)
class Merged:
    """What was put together.

    Attributes:
        records: lines of the new output.
        failed: those that hold an error.
        shards: how many outputs they came from.
    """

    records: int
    failed: int
    shards: int


@dataclass(frozen=True, slots=True)
class _Part:
    """One shard's output, open and locked."""

    name: str
    path: Path
    stream: io.FileIO
    manifest: RunManifest
    shard: Shard
    kept: dict[str, Kept]


def merge(
    outputs: Sequence[Path],
    output: Path,
    *,
    records: Sequence[tuple[int, str, str]] | None = None,
    files: Files = _FILES,
) -> Merged:
    """Writes the merged output, whole or not at all.

    Args:
        outputs: of all shards, in any order.
        output: the new file.
        records: line, id and SHA-256 of each record of the input; without them, completeness is
            judged by the counts that the shards kept, and the order by the lines that they noted.
        files: operations; for tests.

    Raises:
        UsageError: the outputs do not belong together, or do not hold every record once; or the
            new one cannot be written. They are told by their place on the command line.
    """
    check_place(output, outputs)
    if holds_something(output):
        raise UsageError(f"{WHAT} is there already. Name a new file.")
    with contextlib.ExitStack() as stack:
        try:
            lock = Lock(output, files, WHAT)
        except OSError as error:
            raise refusal(error) from None
        stack.callback(lock.close)
        names = [f"Output {number} of {len(outputs)}" for number in range(1, len(outputs) + 1)]
        _check_distinct(outputs, names)
        parts = [
            stack.enter_context(_opened(path, name, files))
            for path, name in zip(outputs, names, strict=True)
        ]
        _check_together(parts)
        order = _order(parts, records)
        try:
            _write(files, output, parts, order)
        except OSError as error:
            raise _unwritten(error) from None
    failed = sum(kept.code != OK for part in parts for kept in part.kept.values())
    return Merged(len(order), failed, len(parts))


def _check_distinct(outputs: Sequence[Path], names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for path, name in zip(outputs, names, strict=True):
        before = seen.setdefault(os.path.realpath(path), name)
        if before != name:
            raise UsageError(f"{name} and {before} are the same file.")


@contextlib.contextmanager
def _opened(path: Path, name: str, files: Files) -> Iterator[_Part]:
    """Opens a shard for reading and keeps runs from writing to it."""
    try:
        if not path.is_file():
            raise UsageError(f"{name} cannot be read: there is no such file.")
        with contextlib.ExitStack() as stack:
            lock = Lock(path, files, name)
            stack.callback(lock.close)
            stream = stack.enter_context(files.open(path, os.O_RDONLY))
            yield _part(path, name, stream)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or "no access"
        raise UsageError(f"{name} cannot be read: {reason}.") from None


def _part(path: Path, name: str, stream: io.FileIO) -> _Part:
    manifest = read_manifest(path, name)
    if manifest is None:
        raise UsageError(f"{name} is not of capt-local batch, or has lost its manifest.")
    if manifest.shard is None:
        raise UsageError(f"{name} is not of a shard: its run had no --shard.")
    found = scan(stream, manifest.digest, name)
    if found.torn:
        raise UsageError(f"{name} ends in half a line: run shard {manifest.shard} again.")
    if not all(manifest.shard.holds(id) for id in found.kept):
        raise UsageError(f"{name} holds records that are not of shard {manifest.shard}.")
    return _Part(name, path, stream, manifest, manifest.shard, found.kept)


def _check_together(parts: Sequence[_Part]) -> None:
    """Whether the shards are of one run and one input, and none is missing or there twice."""
    first, places = parts[0], dict[int, str]()
    for part in parts:
        if names := differing(_without_shard(first), _without_shard(part)):
            raise UsageError(
                f"{part.name} is of a run with other settings than the first; what differs: "
                f"{told(names)}."
            )
        if part.shard.count != first.shard.count:
            raise UsageError(
                f"{part.name} is shard {part.shard}, but the first is {first.shard}: they are of "
                "different divisions."
            )
        if part.manifest.input.get("sha256") != first.manifest.input.get("sha256"):
            raise UsageError(
                f"{part.name} was made from another input than the first. Run its shard again "
                "with the same input."
            )
        if part.shard.index in places:
            raise UsageError(f"{part.name} and {places[part.shard.index]} are the same shard.")
        places[part.shard.index] = part.name
    missing = [n for n in range(1, first.shard.count + 1) if n not in places]
    if missing:
        names = [f"{number}/{first.shard.count}" for number in missing]
        raise UsageError(f"Not all shards are given; missing: {told(names)}.")


def _without_shard(part: _Part) -> Mapping[str, Any]:
    return {name: value for name, value in part.manifest.fingerprint.items() if name != "shard"}


def _order(
    parts: Sequence[_Part], records: Sequence[tuple[int, str, str]] | None
) -> list[tuple[_Part, Kept]]:
    """All lines in the order of the input."""
    if records is None:
        for part in parts:
            _check_count(part)
        lines = [(part, kept) for part in parts for kept in part.kept.values()]
        return sorted(lines, key=lambda line: line[1].number)
    where = {id: (part, kept) for part in parts for id, kept in part.kept.items()}
    lacking = [number for number, id, _ in records if id not in where]
    if lacking:
        raise UsageError(
            f"{len(lacking)} of {len(records)} records have no line yet, the first one in line "
            f"{lacking[0]} of the input. Run the shards to their end."
        )
    if len(where) > len(records):
        raise UsageError(f"{len(where) - len(records)} lines are of records not in the input.")
    for number, id, sha256 in records:
        if where[id][1].sha256.hex() != sha256:
            raise UsageError(f"The input, line {number}: changed since its answer was written.")
    return [where[id] for _, id, _ in records]


def _check_count(part: _Part) -> None:
    wanted, held = part.manifest.input.get("wanted"), len(part.kept)
    if not isinstance(wanted, int):
        raise UsageError(f"{part.name} does not say how many records it is of; give --input.")
    if held < wanted:
        raise UsageError(
            f"{part.name} holds {held} of the {wanted} records of shard {part.shard}. Run that "
            "shard to its end."
        )
    if held > wanted:
        raise UsageError(f"{part.name} holds {held} records, but its input had {wanted}.")


def _write(
    files: Files, output: Path, parts: Sequence[_Part], order: Sequence[tuple[_Part, Kept]]
) -> None:
    """Writes beside, then renames; the manifest first, which without an output means nothing."""
    new = sibling(output, NEW)
    with contextlib.suppress(FileNotFoundError):
        files.unlink(new)
    try:
        with create(files, new) as stream:
            for part, kept in order:
                write_all(files, stream, read_line(part.stream, kept))
            files.fsync(stream)
        _manifest(parts, len(order)).write(files, output)
        files.replace(new, output)
        files.sync_folder(output.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            files.unlink(new)
        raise


def _manifest(parts: Sequence[_Part], count: int) -> RunManifest:
    """That of a run without shards, with what each shard said about itself."""
    facts = RunFacts(wanted=count, input=parts[0].manifest.input)
    whole = RunManifest.new({**parts[0].manifest.fingerprint, "shard": None}, facts)
    entries = [
        {**entry, "shard": str(part.shard), "run": part.manifest.run}
        for part in sorted(parts, key=lambda part: part.shard.index)
        for entry in part.manifest.provenance
    ]
    return dataclasses.replace(whole, provenance=tuple(entries))


def _unwritten(error: OSError) -> UsageError:
    reason = "the disk is full" if is_full(error) else error.strerror or "it failed"
    return UsageError(f"{WHAT} cannot be written: {reason}. The shards are as they were.")
