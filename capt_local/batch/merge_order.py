"""In which order the lines of shards are put together, and whether all of them are there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capt_local.batch.journal_lines import Kept
from capt_local.batch.manifest import RunManifest
from capt_local.batch.shard import Shard
from capt_local.errors import UsageError


@dataclass(frozen=True, slots=True)
class Part:
    """One shard's output, open and locked."""

    name: str
    path: Path
    stream: io.FileIO
    manifest: RunManifest
    shard: Shard
    kept: dict[str, Kept]
    notice: str = ""


def in_order(
    parts: Sequence[Part], records: Sequence[tuple[int, str, str]] | None
) -> list[tuple[Part, Kept]]:
    """All lines in the order of the input.

    Args:
        parts: that belong together.
        records: see `merge.merge`.

    Raises:
        UsageError: a record has no line or another one, or the order is not known.
    """
    if records is None:
        return _as_noted(parts)
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


def _as_noted(parts: Sequence[Part]) -> list[tuple[Part, Kept]]:
    """By the numbers that the lines have from when they were written, where these still hold."""
    for part in parts:
        _check_count(part)
        if part.manifest.input.get("earlier"):
            raise UsageError(
                f"{part.name} was made while its input changed, so the numbers in its lines do not "
                "tell the order. Give the input as it is now with --input."
            )
    lines = [(part, kept) for part in parts for kept in part.kept.values()]
    if len({kept.number for _, kept in lines}) < len(lines):
        raise UsageError(
            "Two records say that they are of the same line of the input, so their order is not "
            "known. Give the input with --input."
        )
    return sorted(lines, key=lambda line: line[1].number)


def _check_count(part: Part) -> None:
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
