"""The header of a GGUF file, read and checked in Python before llama.cpp sees the file.

A broken header can abort the process inside llama.cpp, and a truncated file kills it later. So
counts, lengths, names, sizes and the place of every tensor are held against limits and the file's
size first, and only known architectures and tokenizers are let in. The values found serve to
estimate memory; the vocabulary is skipped (llama.cpp reads it).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import BinaryIO

from capt_local.engine.architectures import check_kind
from capt_local.engine.gguf_reader import (
    ARRAY,
    FLOAT32,
    INT32,
    STRING,
    UINT32,
    GgufReader,
    Numbers,
    Scalar,
)
from capt_local.engine.number_formats import TENSOR_TYPES
from capt_local.errors import ModelError

_MOST_TENSORS = 1 << 16
_MOST_PAIRS = 1 << 14
_MOST_DIMENSIONS = 4
_MOST_NUMBERS = 1 << 48  # of a tensor
_LONGEST_KEY = (1 << 16) - 1  # bytes, as GGUF has it
_LONGEST_NAME = 63  # bytes, of a tensor: what llama.cpp has room for
_WIDEST_ALIGNMENT = 1 << 16
# The sizes that this program computes with itself, and more than any model has.
_LARGEST = {
    "block_count": 1 << 12,
    "context_length": 1 << 31,
    "embedding_length": 1 << 20,
    "feed_forward_length": 1 << 24,
    "attention.head_count": 1 << 16,
    "attention.head_count_kv": 1 << 16,
    "attention.key_length": 1 << 16,
    "attention.value_length": 1 << 16,
    "ssm.conv_kernel": 1 << 16,
    "ssm.inner_size": 1 << 24,
    "ssm.state_size": 1 << 16,
}
# Lists of the vocabulary: the types that they may have.
_LISTS = {
    "tokenizer.ggml.tokens": (STRING,),
    "tokenizer.ggml.merges": (STRING,),
    "tokenizer.ggml.token_type": (INT32,),
    "tokenizer.ggml.scores": (FLOAT32, INT32),
}
_EACH_TOKEN = ("tokenizer.ggml.token_type", "tokenizer.ggml.scores")


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
    arrays: dict[str, Numbers]
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
        return value if isinstance(value, int) else default


def read_header(path: Path, place: Path | None = None) -> Header:
    """Reads and checks the header of a GGUF file.

    Args:
        path: of the file.
        place: where to open it instead; see `engine.held`.

    Raises:
        ModelError: the file is missing, is not a GGUF, is cut off, holds impossible numbers, or is
            of a kind that is not let in. The message has the file's name, not its folder.
    """
    try:
        with (place or path).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return parse_header(file, path.name, size)
    except FileNotFoundError:
        raise ModelError(f"{path.name}: there is no such model file.") from None
    except IsADirectoryError:
        raise ModelError(f"{path.name} is a folder, not a GGUF file.") from None
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}.") from None


def parse_header(file: BinaryIO, name: str, size: int) -> Header:
    """The header of an open file, checked.

    Args:
        file: at its beginning.
        name: for errors.
        size: bytes of the file.

    Raises:
        ModelError: see `read_header`.
    """
    return _Parser(GgufReader(file, name, size), name, size).header()


class _Parser:
    """Knows what stands where in a header, and what it may say."""

    def __init__(self, reader: GgufReader, name: str, size: int) -> None:
        self._reader = reader
        self._name = name
        self._size = size
        self._values: dict[str, Scalar] = {}
        self._kinds: dict[str, int] = {}
        self._arrays: dict[str, Numbers] = {}
        self._lengths: dict[str, int] = {}
        self._places: dict[str, tuple[int, int]] = {}

    def header(self) -> Header:
        if self._size < 24 or self._reader.take(4) != b"GGUF":
            raise ModelError(f"{self._name} is not a GGUF file.")
        version = self._reader.number("I")
        if version not in (2, 3):
            raise ModelError(
                f"{self._name} is a GGUF file of version {version & 0xFFFF}; 2 and 3 can be read."
            )
        tensors, pairs = self._count(_MOST_TENSORS), self._count(_MOST_PAIRS)
        for _ in range(pairs):
            self._pair()
        self._refuse_parts()
        architecture = self._values.get("general.architecture")
        check_kind(self._name, architecture, self._values.get("tokenizer.ggml.model"))
        self._check_sizes(str(architecture))
        self._check_lists()
        found = self._tensors(tensors)
        return Header(
            self._size, self._values, self._arrays, self._lengths, found, self._kinds, self._places
        )

    def _pair(self) -> None:
        key, start = self._key(_LONGEST_KEY, self._places), self._reader.place
        kind = self._reader.number("I")
        if kind == ARRAY:
            inner, self._lengths[key], kept = self._reader.array()
            if inner not in _LISTS.get(key, (inner,)):
                raise self._reader.broken("a list of its vocabulary has another type")
            if kept:
                self._arrays[key] = kept
        else:
            self._values[key], self._kinds[key] = self._reader.scalar(kind), kind
        self._places[key] = (start, self._reader.place - start)

    def _key(self, longest: int, others: dict[str, tuple[int, int]] | dict[str, Tensor]) -> str:
        """The next name, which is not one of the others."""
        try:
            name = self._reader.text(longest).decode("utf-8")
        except UnicodeDecodeError:
            raise self._reader.broken("a name is not UTF-8") from None
        if not name or name in others:
            raise self._reader.broken("a name is empty or stands there twice")
        return name

    def _count(self, most: int) -> int:
        count = self._reader.number("Q")
        if count > most:
            raise self._reader.broken(f"it claims {count} entries")
        return count

    def _refuse_parts(self) -> None:
        parts = self._values.get("split.count", 1)
        if isinstance(parts, int) and parts > 1:
            raise ModelError(
                f"{self._name} is one of {parts} parts of a model. Join them into one file first "
                "(llama-gguf-split --merge)."
            )

    def _check_sizes(self, architecture: str) -> None:
        for name, largest in _LARGEST.items():
            key = f"{architecture}.{name}"
            every = (self._values.get(key, 0), *self._arrays.get(key, ()))
            if not all(isinstance(one, int) and 0 <= one <= largest for one in every):
                raise self._reader.broken(f"{name} is no possible size")

    def _check_lists(self) -> None:
        tokens = self._lengths.get("tokenizer.ggml.tokens", 0)
        for name in _LISTS:
            if name in self._values:
                raise self._reader.broken("a list of its vocabulary is none")
        for name in _EACH_TOKEN:
            if self._lengths.get(name, tokens) < tokens:
                raise self._reader.broken("a list of its vocabulary is too short")

    def _tensors(self, count: int) -> tuple[Tensor, ...]:
        found: dict[str, Tensor] = {}
        offsets = []
        for _ in range(count):
            tensor, offset = self._tensor(found)
            found[tensor.name] = tensor
            offsets.append(offset)
        self._check_places(tuple(found.values()), offsets)
        return tuple(found.values())

    def _tensor(self, others: dict[str, Tensor]) -> tuple[Tensor, int]:
        name = self._key(_LONGEST_NAME, others)
        dimensions = self._reader.number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self._reader.broken("a tensor has an impossible shape")
        shape = tuple(self._reader.number("Q") for _ in range(dimensions))
        kind, offset = self._reader.number("I"), self._reader.number("Q")
        if kind not in TENSOR_TYPES:
            raise self._reader.broken(f"a tensor has the unknown number format {kind}")
        block, size = TENSOR_TYPES[kind]
        if min(shape) < 1 or prod(shape) > _MOST_NUMBERS or shape[0] % block:
            raise self._reader.broken("a tensor has an impossible shape")
        return Tensor(name, shape, prod(shape) // block * size, kind), offset

    def _check_places(self, tensors: tuple[Tensor, ...], offsets: list[int]) -> None:
        """Tensors lie one behind the other, as llama.cpp has it, so none on another."""
        alignment = self._values.get("general.alignment", 32)
        if (
            not isinstance(alignment, int)
            or self._kinds.get("general.alignment", UINT32) != UINT32
            or not 1 <= alignment <= _WIDEST_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            raise self._reader.broken("its alignment is not a power of two")
        data = _up(self._reader.place, alignment)
        expected = 0
        for tensor, offset in zip(tensors, offsets, strict=True):
            if offset != expected:
                raise self._reader.broken("a tensor does not begin where the one before ends")
            if data + offset + tensor.size > self._size:
                raise self._reader.cut_off(data + offset + tensor.size)
            expected = _up(offset + tensor.size, alignment)


def _up(place: int, alignment: int) -> int:
    """The next place that is a multiple of `alignment`."""
    return -(-place // alignment) * alignment
