"""What the run and its worker process say to each other: JSON objects, each behind its length.

Plain JSON, so that neither side can make the other run anything. Text of patients goes through the
pipe alone; no file is made.
"""

from __future__ import annotations

import json
import struct
from typing import IO, Any

Message = dict[str, Any]

_HEAD = struct.Struct(">I")
_LARGEST = 1 << 30


def send(stream: IO[bytes], message: Message) -> None:
    """Sends a message.

    Raises:
        OSError: the other side has gone.
    """
    data = json.dumps(message, ensure_ascii=True, allow_nan=False).encode()
    stream.write(_HEAD.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Message | None:
    """The next message; None where the other side has gone, also in the middle of one."""
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    (size,) = _HEAD.unpack(head)
    if size > _LARGEST:
        return None
    data = stream.read(size)
    if len(data) < size:
        return None
    message = json.loads(data)
    return message if isinstance(message, dict) else None
