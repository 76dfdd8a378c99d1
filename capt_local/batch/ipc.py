"""Messages between a run and its worker process: JSON objects, each behind its length.

Plain JSON, so that neither side can make the other run anything. Text of patients goes through the
pipe alone; no file is made.
"""

from __future__ import annotations

import datetime
import struct
from dataclasses import dataclass, field
from typing import IO, Any, TypeVar

import msgspec

from capt_local.bundles.manifest import Bundle
from capt_local.bundles.verify import Check
from capt_local.decoding.options import GenerateOptions
from capt_local.llama.options import LoadOptions

WireMessage = dict[str, Any]
_Kind = TypeVar("_Kind")
_HEAD = struct.Struct(">I")
_LARGEST = 1 << 30


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Which models a worker loads, how, and what all records of a run share.

    Attributes:
        bundle: as the run found it, digests included, so that a worker that is started again
            cannot load something else.
        date: today's date for chat templates.
        check: how the digests are checked.
        raw: whether prompts are continued without a chat template.
        parallel: how many answers are made at once.
        best_of: answers to each record, of which the best counts.
        scorer: that ranks them; see `rerank.scorer.open_scorer`.
    """

    bundle: Bundle
    options: GenerateOptions = field(default_factory=GenerateOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    date: datetime.date | None = None
    check: Check = Check.CACHED
    raw: bool = False
    parallel: int = 1
    best_of: int = 1
    scorer: str | None = None


def send(stream: IO[bytes], message: WireMessage) -> None:
    """Sends a message. Raises OSError if the other side has gone."""
    data = msgspec.json.encode(message)
    stream.write(_HEAD.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> WireMessage | None:
    """The next message; None where the other side has gone, also in the middle of one."""
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size or (size := _HEAD.unpack(head)[0]) > _LARGEST:
        return None
    data = stream.read(size)
    message = msgspec.json.decode(data) if len(data) == size else None
    return message if isinstance(message, dict) else None


def pack(value: object) -> Any:
    """A dataclass as JSON has it; paths as text."""
    return msgspec.to_builtins(value, enc_hook=str)


def unpack(kind: type[_Kind], value: object) -> _Kind:
    """The dataclass that was packed. A missing field has its default.

    Raises:
        msgspec.ValidationError: a value is not of its kind.
        UsageError: the dataclass refuses a value.
    """
    return msgspec.convert(value, kind, dec_hook=lambda kind, value: kind(value))
