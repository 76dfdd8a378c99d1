"""The header of a GGUF file, read and checked in Python before llama.cpp sees the file.

A broken header can abort the process inside llama.cpp, and a truncated file kills it later. So
counts, lengths and the place of every tensor are held against the file's size first. The values
found serve to estimate memory; the vocabulary is skipped (llama.cpp reads it).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import BinaryIO

from capt_local.engine.number_formats import TENSOR_TYPES
from capt_local.errors import ModelError

Scalar = int | float | bool | str

_MOST_ENTRIES = 1 << 17
_MOST_DIMENSIONS = 4
_KEPT_ARRAY = 1024
_CHUNK = 1 << 20

# GGUF value types: id -> struct format. 8 is a string and 9 an array.
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?",
            10: "Q", 11: "q", 12: "d"}  # fmt: skip
FLOAT32 = 6
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: shape with the fastest dimension first, size in bytes, format of its numbers."""

    name: str
    shape: tuple[int, ...]
    size: int
    kind: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says about itself, without its vocabulary.

    Attributes:
        file_size: bytes.
        values: scalars by key.
        arrays: short arrays of numbers by key.
        lengths: length of every array by key.
        tensors: in the order of the file.
        kinds: GGUF value type of each scalar by key.
        places: first byte in the file and length of each value by key, its type in front of it.
    """

    file_size: int
    values: dict[str, Scalar]
    arrays: dict[str, tuple[int | float | bool, ...]]
    lengths: dict[str, int]
    tensors: tuple[Tensor, ...]
    kinds: dict[str, int]
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """Such as "llama" or "qwen2"."""
        return str(self.values.get("general.architecture", ""))

    def number(self, key: str, default: int = 0) -> int:
        """A whole number under `<architecture>.<key>`."""
        value = self.values.get(f"{self.architecture}.{key}", default)
        return int(value) if isinstance(value, (int, float)) else default


def read_header(path: Path, place: Path | None = None) -> Header:
    """Reads and checks the header of a GGUF file.

    Args:
        path: of the file.
        place: where to open it instead; see `engine.held`.

    Raises:
        ModelError: the file is missing, is not a GGUF, is cut off or holds impossible numbers.
            The message has the file's name, not its folder.
    """
    try:
        with (place or path).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _Reader(file, path.name, size).header()
    except FileNotFoundError:
        raise ModelError(f"{path.name}: there is no such model file.") from None
    except IsADirectoryError:
        raise ModelError(f"{path.name} is a folder, not a GGUF file.") from None
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}.") from None


class _Reader:
    """Walks over a header. Never reads past what the file holds."""

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self._file = file
        self._name = name
        self._size = size
        self._data = b""
        self._start = 0  # place of _data in the file
        self._at = 0  # next byte, within _data

    def header(self) -> Header:
        if self._size < 24 or self._take(4) != b"GGUF":
            raise ModelError(f"{self._name} is not a GGUF file.")
        version = self._number("I")
        if version not in (2, 3):
            raise ModelError(
                f"{self._name} is a GGUF file of version {version & 0xFFFF}; 2 and 3 can be read."
            )
        tensors, pairs = self._count(), self._count()
        values: dict[str, Scalar] = {}
        arrays: dict[str, tuple[int | float | bool, ...]] = {}
        lengths: dict[str, int] = {}
        kinds: dict[str, int] = {}
        places: dict[str, tuple[int, int]] = {}
        for _ in range(pairs):
            key, start = self._string(), self._start + self._at
            kind = self._number("I")
            if kind == _ARRAY:
                lengths[key], kept = self._array()
                if kept:
                    arrays[key] = kept
            else:
                values[key], kinds[key] = self._scalar(kind), kind
            places[key] = (start, self._start + self._at - start)
        self._refuse_parts(values)
        found = tuple(self._tensor() for _ in range(tensors))
        self._check_places(found, values)
        tensors_found = tuple(tensor for tensor, _ in found)
        return Header(self._size, values, arrays, lengths, tensors_found, kinds, places)

    def _check_places(
        self, found: tuple[tuple[Tensor, int], ...], values: dict[str, Scalar]
    ) -> None:
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._broken("its alignment is not a power of two")
        here = self._start + self._at
        data = (here + alignment - 1) // alignment * alignment
        for tensor, offset in found:
            if offset % alignment:
                raise self._broken("a tensor does not begin where it may")
            if data + offset + tensor.size > self._size:
                raise self._cut_off(data + offset + tensor.size)

    def _refuse_parts(self, values: dict[str, Scalar]) -> None:
        parts = values.get("split.count", 1)
        if isinstance(parts, int) and parts > 1:
            raise ModelError(
                f"{self._name} is one of {parts} parts of a model. Join them into one file first "
                "(llama-gguf-split --merge)."
            )

    def _tensor(self) -> tuple[Tensor, int]:
        name = self._string()
        dimensions = self._number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self._broken("a tensor has an impossible shape")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        kind, offset = self._number("I"), self._number("Q")
        if kind not in TENSOR_TYPES:
            raise self._broken(f"a tensor has the unknown number format {kind}")
        block, size = TENSOR_TYPES[kind]
        if min(shape) < 1 or prod(shape) > 1 << 48 or shape[0] % block:
            raise self._broken("a tensor has an impossible shape")
        return Tensor(name, shape, prod(shape) // block * size, kind), offset

    def _scalar(self, kind: int) -> Scalar:
        if kind == _STRING:
            return self._string()
        if kind not in _FORMATS:
            raise self._broken("a value has an unknown type")
        value: int | float | bool = self._number(_FORMATS[kind])
        return value

    def _array(self) -> tuple[int, tuple[int | float | bool, ...]]:
        kind, length = self._number("I"), self._number("Q")
        if length > self._size:
            raise self._broken("a list is longer than the file")
        if kind == _STRING:
            self._skip_strings(length)
            return length, ()
        if kind not in _FORMATS:
            raise self._broken("a list has an unknown type")
        layout = struct.Struct(f"<{length}{_FORMATS[kind]}")
        if length > _KEPT_ARRAY:
            self._skip(layout.size)
            return length, ()
        return length, layout.unpack(self._take(layout.size))

    def _skip_strings(self, length: int) -> None:
        """Walks over strings; a vocabulary with its merges has 300,000."""
        data, at = self._data, self._at
        for _ in range(length):
            if at + 8 > len(data):
                self._at = at
                self._need(8)
                data, at = self._data, self._at
            at += 8 + int.from_bytes(data[at : at + 8], "little")
            if at > len(data):
                self._at = len(data)
                self._skip(at - len(data))
                data, at = self._data, self._at
        self._at = at

    def _count(self) -> int:
        count = int(self._number("Q"))
        if count > _MOST_ENTRIES:
            raise self._broken(f"it claims {count} entries")
        return count

    def _number(self, code: str) -> int:
        layout = struct.Struct(f"<{code}")
        return layout.unpack(self._take(layout.size))[0]

    def _string(self) -> str:
        length = self._number("Q")
        if length > self._size:
            raise self._broken("a text is longer than the file")
        return self._take(length).decode("utf-8", "replace")

    def _take(self, count: int) -> bytes:
        self._need(count)
        part = self._data[self._at : self._at + count]
        self._at += count
        return part

    def _skip(self, count: int) -> None:
        if self._start + self._at + count > self._size:
            raise self._cut_off(self._start + self._at + count)
        self._start += self._at + count
        self._data, self._at = b"", 0
        self._file.seek(self._start)

    def _need(self, count: int) -> None:
        missing = count - (len(self._data) - self._at)
        if missing <= 0:
            return
        if self._start + self._at + count > self._size:
            raise self._cut_off(self._start + self._at + count)
        self._data = self._data[self._at :] + self._file.read(max(missing, _CHUNK))
        self._start += self._at
        self._at = 0
        if len(self._data) < count:
            raise self._cut_off(self._start + count)

    def _broken(self, why: str) -> ModelError:
        return ModelError(f"{self._name} is damaged: {why}. Get the file again.")

    def _cut_off(self, needed: int) -> ModelError:
        return ModelError(
            f"{self._name} is cut off: it has {self._size:,} bytes but needs at least "
            f"{needed:,}. Get the file again."
        )
