"""The chain of a log of runs, read and checked entry by entry; see `audit`."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from capt_local.batch.journal_lines import raw_lines
from capt_local.errors import UsageError
from capt_local.strict.json import parse_object
from capt_local.strict.problems import NotReadable

WHAT = "The audit log"
BEFORE_THE_FIRST = "0" * 64
_LONGEST = 1 << 20  # bytes of a line


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a log turned out to be.

    Attributes:
        entries: those before the first bad one, as they stand in the file.
        head: hash of the last of them.
        bad: number of the first bad entry, from 1; None where none is.
        problem: what is wrong with it, or with the log; "" for a whole one.
        torn: bytes at the end of the file that a kill left of an entry; not an error.
        whole: bytes of the entries.
    """

    entries: tuple[Mapping[str, Any], ...]
    head: str
    bad: int | None = None
    problem: str = ""
    torn: int = 0
    whole: int = 0


def verify(path: Path) -> Verdict:
    """Reads a log and checks each entry.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        if not path.is_file():
            reason = "it is not a file" if path.exists() else "there is no such file"
            raise UsageError(f"{WHAT} cannot be read: {reason}.")
        with path.open("rb", buffering=0) as stream:
            return examine(stream)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no access"
        raise UsageError(f"{WHAT} cannot be read: {reason}.") from None


def with_head(found: Verdict, head: str) -> Verdict:
    """The same verdict, unless a head that was kept elsewhere is not in the log.

    Args:
        found: of a log.
        head: hash that a run printed.
    """
    if found.bad is not None or head in {str(entry["hash"]) for entry in found.entries}:
        return found
    problem = (
        f"no entry (of {len(found.entries)}) has the head that was given: entries were cut off, or "
        "the log made anew"
    )
    return replace(found, problem=problem)


def examine(stream: io.FileIO) -> Verdict:
    """Reads an open log and checks each entry; OSError as the system does."""
    entries: list[Mapping[str, Any]] = []
    head, whole = BEFORE_THE_FIRST, 0
    for number, line in enumerate(raw_lines(stream, _LONGEST), 1):
        if not line.endswith(b"\n") and _begins_as_ours(line, number):
            return Verdict(tuple(entries), head, torn=len(line), whole=whole)
        value, problem = _checked(line, number, head)
        if problem:
            return Verdict(tuple(entries), head, number, problem, whole=whole)
        entries.append(value)
        head, whole = value["hash"], whole + len(line)
    return Verdict(tuple(entries), head, whole=whole)


def _begins_as_ours(line: bytes, number: int) -> bool:
    """Whether half a line is the beginning of an entry; nothing else is ever cut off."""
    if len(line) == _LONGEST:
        return False
    front = f'{{"n": {number}, "time": "'.encode()
    return line[: len(front)] == front[: len(line)]


def _checked(line: bytes, number: int, head: str) -> tuple[dict[str, Any], str]:
    """An entry, and what is wrong with it; "" for nothing."""
    try:
        value: dict[str, Any] = parse_object(line)
    except NotReadable as error:
        return {}, str(error)
    if not isinstance(value.get("hash"), str) or "event" not in value:
        return value, "not an entry of an audit log"
    if value.get("previous") != head:
        return value, "it does not follow the entry before it"
    if value["hash"] != hash_of(value) or line != line_of(value):
        return value, "it was changed"
    if value.get("n") != number:
        return value, "its number is not its place"
    return value, ""


def hash_of(value: Mapping[str, Any]) -> str:
    """Of all of an entry but its hash; `previous` ties it to the one before."""
    rest = {name: item for name, item in value.items() if name != "hash"}
    return hashlib.sha256(line_of(rest)).hexdigest()


def line_of(value: Mapping[str, Any]) -> bytes:
    """The one form of an entry: a space more is a change too."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False).encode() + b"\n"
