"""GGUF files by hand: their texts, and a header with pairs and tensors as bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence


def text(value: str) -> bytes:
    """A text as GGUF has it."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(pairs: Sequence[bytes], tensors: Sequence[bytes], size: int, version: int = 3) -> bytes:
    """A file of these entries, with `size` bytes of numbers."""
    front = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    data = front + b"".join((*pairs, *tensors))
    return data + bytes(-len(data) % 32 + size)
