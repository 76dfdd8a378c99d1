"""The lines of an output, read back: what is done, and where each line lies."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from capt_local.batch.output import OK
from capt_local.errors import UsageError
from capt_local.strict.json import parse_object
from capt_local.strict.problems import NotReadable

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Kept:
    """A line of the output.

    Attributes:
        code: `ok`, or that of its error.
        answered: whether it holds an answer; one of a wrong form is both answer and error.
        number: of the record in the input when the line was written, from 1.
        sha256: digest of the record, 32 bytes.
        offset: where the line begins in the output; filled in when it is written.
        length: bytes, its end included.
    """

    code: str
    answered: bool
    number: int
    sha256: bytes
    offset: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class Scan:
    """What an output holds.

    Attributes:
        kept: its lines, by the id of the record.
        whole: bytes of whole lines; what lies behind is torn.
        size: bytes of the file.
    """

    kept: dict[str, Kept]
    whole: int
    size: int

    @property
    def torn(self) -> int:
        """Bytes of the half line that a kill or a full disk left at the end."""
        return self.size - self.whole


def scan(stream: io.FileIO, run: str, what: str) -> Scan:
    """Reads an output from its beginning to its end; keeps no text.

    Args:
        stream: open for reading.
        run: what `provenance.run` of each line must be.
        what: what errors call the output.

    Raises:
        UsageError: a line that others follow is broken, is of another run, or is there twice. At
            the end of the file, what is no line is torn instead.
        OSError: as the system does.
    """
    kept: dict[str, Kept] = {}
    whole = size = 0
    broken: int | None = None
    for number, line in enumerate(raw_lines(stream), 1):
        size += len(line)
        try:
            found = _value(line)
        except NotReadable:
            broken = broken or number
            continue
        if broken is not None:
            raise _wrong(what, broken, "is not a result of capt-local batch")
        id, entry, of = _entry(found, size - len(line), len(line))
        if of != run:
            raise _wrong(what, number, "is of a run with other settings")
        if id in kept:
            raise _wrong(what, number, "is of a record that an earlier line is of")
        kept[id] = entry
        whole = size
    return Scan(kept, whole, size)


def raw_lines(stream: io.FileIO, longest: int = -1) -> Iterator[bytes]:
    """The lines of a file with their ends; the last one may have none.

    Args:
        stream: open for reading.
        longest: bytes after which a longer line is cut in two; -1: none is.
    """
    stream.seek(0)
    with open(stream.fileno(), "rb", closefd=False, buffering=1 << 20) as reader:
        while line := reader.readline(longest):
            yield line


def read_line(stream: io.FileIO, kept: Kept) -> bytes:
    """One line with its end.

    Raises:
        OSError: as the system does.
    """
    stream.seek(kept.offset)
    parts, left = [], kept.length
    while left:
        part = stream.read(left)
        if not part:
            raise OSError("the file has become shorter")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _value(line: bytes) -> dict[str, Any]:
    """A line as an object with all that a result needs.

    Raises:
        NotReadable: it is not one.
    """
    if not line.endswith(b"\n"):
        raise NotReadable("no end")
    value: dict[str, Any] = parse_object(line)
    error, provenance = value.get("error"), value.get("provenance")
    if not isinstance(provenance, dict) or "response" not in value:
        raise NotReadable("not a result")
    record, run = provenance.get("record"), provenance.get("run")
    if not (
        isinstance(value.get("id"), str)
        and (error is None or (isinstance(error, dict) and isinstance(error.get("code"), str)))
        and isinstance(value["response"], dict if error is None else dict | None)
        and isinstance(record, dict)
        and isinstance(record.get("line"), int)
        and isinstance(record.get("sha256"), str)
        and _DIGEST.fullmatch(record["sha256"])
        and isinstance(run, str)
    ):
        raise NotReadable("not a result")
    return value


def _entry(value: dict[str, Any], offset: int, length: int) -> tuple[str, Kept, str]:
    error, provenance = value["error"], value["provenance"]
    kept = Kept(
        code=error["code"] if error else OK,
        answered=value["response"] is not None,
        number=provenance["record"]["line"],
        sha256=bytes.fromhex(provenance["record"]["sha256"]),
        offset=offset,
        length=length,
    )
    return value["id"], kept, provenance["run"]


def _wrong(what: str, number: int, problem: str) -> UsageError:
    return UsageError(
        f"{what}, line {number}: it {problem}. Nothing was written. "
        "Name a new file, or move this one aside with --force-new."
    )
