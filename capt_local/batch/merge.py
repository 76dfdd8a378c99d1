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
from capt_local.batch.journal_place import (
    WHAT,
    check_place,
    holds_something,
    move_aside,
    refused_by_the_disk,
)
from capt_local.batch.lock import Lock
from capt_local.batch.manifest import RunFacts, RunManifest, read_manifest
from capt_local.batch.merge_order import Part, in_order
from capt_local.batch.output import OK
from capt_local.errors import UsageError

_FILES = Files()


@dataclass(frozen=True, slots=True)
class Merged:
    """What was put together.

    Attributes:
        records: lines of the new output.
        failed: those that hold an error.
        shards: how many outputs they came from.
        notices: what the user should know.
    """

    records: int
    failed: int
    shards: int
    notices: tuple[str, ...] = ()


def merge(
    outputs: Sequence[Path],
    output: Path,
    *,
    records: Sequence[tuple[int, str, str]] | None = None,
    force_new: bool = False,
    files: Files = _FILES,
) -> Merged:
    """Writes the merged output, whole or not at all.

    Args:
        outputs: of all shards, in any order.
        output: the new file.
        records: line, id and SHA-256 of each record of the input; without them, completeness is
            judged by the counts that the shards kept, and the order by the lines that they noted.
        force_new: moves an output that is there aside.
        files: operations; for tests.

    Raises:
        UsageError: the outputs do not belong together, or do not hold every record once; or the
            new one cannot be written. They are told by their place on the command line.
    """
    check_place(output, outputs)
    if holds_something(output) and not force_new:
        raise UsageError(
            f"{WHAT} is there already. Name a new file, or move it aside with --force-new."
        )
    with contextlib.ExitStack() as stack:
        with refused_by_the_disk():
            lock = Lock(output, files, WHAT)
        stack.callback(lock.close)
        names = [f"Output {number} of {len(outputs)}" for number in range(1, len(outputs) + 1)]
        _check_distinct(outputs, names)
        parts = [
            stack.enter_context(_opened(path, name, files))
            for path, name in zip(outputs, names, strict=True)
        ]
        _check_together(parts)
        order = in_order(parts, records)
        try:
            aside = move_aside(files, output) if force_new else ""
            _write(files, output, parts, order)
        except OSError as error:
            raise _unwritten(error) from None
        said = dict.fromkeys((lock.notice, *(part.notice for part in parts), aside))
    failed = sum(kept.code != OK for part in parts for kept in part.kept.values())
    notices = (*filter(None, said), *_elsewhere(parts))
    return Merged(len(order), failed, len(parts), notices)


def _check_distinct(outputs: Sequence[Path], names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for path, name in zip(outputs, names, strict=True):
        before = seen.setdefault(os.path.realpath(path), name)
        if before != name:
            raise UsageError(f"{name} and {before} are the same file.")


@contextlib.contextmanager
def _opened(path: Path, name: str, files: Files) -> Iterator[Part]:
    """Opens a shard for reading and keeps runs from writing to it."""
    try:
        if not path.is_file():
            raise UsageError(f"{name} cannot be read: there is no such file.")
        with contextlib.ExitStack() as stack:
            lock = Lock(path, files, name)
            stack.callback(lock.close)
            stream = stack.enter_context(files.open(path, os.O_RDONLY))
            yield dataclasses.replace(_part(path, name, stream), notice=lock.notice)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or "no access"
        raise UsageError(f"{name} cannot be read: {reason}.") from None


def _part(path: Path, name: str, stream: io.FileIO) -> Part:
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
    return Part(name, path, stream, manifest, manifest.shard, found.kept)


def _check_together(parts: Sequence[Part]) -> None:
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


def _without_shard(part: Part) -> Mapping[str, Any]:
    return {name: value for name, value in part.manifest.fingerprint.items() if name != "shard"}


def _write(
    files: Files, output: Path, parts: Sequence[Part], order: Sequence[tuple[Part, Kept]]
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


def _manifest(parts: Sequence[Part], count: int) -> RunManifest:
    """That of a run without shards, with what each shard said about itself."""
    facts = RunFacts(wanted=count, input=parts[0].manifest.input)
    whole = RunManifest.new({**parts[0].manifest.fingerprint, "shard": None}, facts)
    entries = [
        {**entry, "shard": str(part.shard), "run": part.manifest.run}
        for part in sorted(parts, key=lambda part: part.shard.index)
        for entry in part.manifest.provenance
    ]
    return dataclasses.replace(whole, provenance=tuple(entries))


def _elsewhere(parts: Sequence[Part]) -> Iterator[str]:
    """Says so where the shards were not all computed on the same devices."""
    first: list[tuple[object, object]] = []
    for part in parts:
        first += [place for place in part.manifest.computed if place not in first]
    if len(first) > 1:
        yield (
            "The shards were computed on different devices or with different layers on them (the "
            "manifest lists all): last digits of numbers, and rarely a token, depend on that."
        )


def _unwritten(error: OSError) -> UsageError:
    reason = "the disk is full" if is_full(error) else error.strerror or "it failed"
    return UsageError(f"{WHAT} cannot be written: {reason}. The shards are as they were.")
