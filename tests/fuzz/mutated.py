"""Damaged GGUF files from a seed, and what becomes of each on its whole way into a process.

Each is made from a tiny valid model: bytes of the header, lengths, types, values, texts, cut ends,
pieces that are doubled or missing, numbers of tensors. The same number gives the same file.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from capt_local.errors import CaptError, ModelError
from capt_local.llama import probe
from capt_local.llama.gguf_header import read_header
from capt_local.llama.model import LlamaModel
from capt_local.llama.options import LoadOptions
from tests.tiny_models import tiny_gguf

SEED = 20261122
OPTIONS = LoadOptions(threads=1, context=64, batch=16, max_rows=1, gpu_layers=0)
_BASES: tuple[dict[str, Any], ...] = (
    {},
    {"flavour": "spm", "number_format": "Q8_0"},
    {"architecture": "gemma3"},
    {"architecture": "mamba"},
    {"number_format": "Q4_0", "tied": True},
)
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_EDGES = (0, 1, 2, 7, 31, 255, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
          1 << 40, 1 << 48, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip


class Outcome(StrEnum):
    """What became of a file."""

    HEADER = "refused by the check of its header"
    PROCESS = "refused by llama.cpp in the other process"
    ENDED = "ended the other process"
    HERE = "refused by llama.cpp in this process"
    LOADED = "loaded, and computed a token"


class Field(NamedTuple):
    """A number of a header: where it stands, its bytes, and what it is for."""

    place: int
    size: int
    kind: str


class Layout:
    """A valid file, and where in it what stands; `end` is that of the header."""

    def __init__(self, data: bytes) -> None:
        self.data, self.end = data, 8
        self.fields: list[Field] = []
        self.texts: list[tuple[int, int]] = []
        tensors, pairs = self._take(8, "count"), self._take(8, "count")
        for _ in range(pairs):
            self._text()
            self._value(self._take(4, "type"))
        for _ in range(tensors):
            self._text()
            for _ in range(self._take(4, "dimensions")):
                self._take(8, "shape")
            self._take(4, "type")
            self._take(8, "offset")

    def _take(self, size: int, kind: str) -> int:
        self.fields.append(Field(self.end, size, kind))
        self.end += size
        return int.from_bytes(self.data[self.end - size : self.end], "little")

    def _text(self) -> None:
        size = self._take(8, "length")
        self.texts.append((self.end, size))
        self.end += size

    def _value(self, kind: int) -> None:
        if kind == _STRING:
            self._text()
        elif kind == _ARRAY:
            inner, length = self._take(4, "type"), self._take(8, "length")
            for _ in range(length):
                self._value(inner)
        else:
            self._take(_SIZES[kind], "value")


Mutation = Callable[[random.Random, Layout, bytearray], None]


def _bytes(draw: random.Random, what: Layout, data: bytearray) -> None:
    for _ in range(draw.randint(1, 8)):
        data[draw.randrange(4, what.end)] = draw.randrange(256)


def _field(*kinds: str) -> Mutation:
    def change(draw: random.Random, what: Layout, data: bytearray) -> None:
        found = draw.choice([each for each in what.fields if each.kind in kinds])
        old = int.from_bytes(data[found.place : found.place + found.size], "little")
        new = draw.choice((*_EDGES, old + 1, old - 1, old * 2, draw.getrandbits(64)))
        put = (new % (1 << 8 * found.size)).to_bytes(found.size, "little")
        data[found.place : found.place + found.size] = put

    return change


def _cut(draw: random.Random, what: Layout, data: bytearray) -> None:
    end = what.end if draw.random() < 0.5 else len(data)
    del data[draw.randrange(end) :]


def _piece(draw: random.Random, what: Layout, data: bytearray) -> None:
    """Takes bytes out, puts them in twice, or puts others there."""
    start = draw.randrange(4, what.end)
    end = min(what.end, start + draw.choice((1, 4, 8, 32, 100)))
    data[start:end] = draw.choice((b"", bytes(data[start:end]) * 2, draw.randbytes(end - start)))


def _text(draw: random.Random, what: Layout, data: bytearray) -> None:
    """Gives a text the bytes of another one, so far as they reach, or any."""
    (start, size), (other, length) = draw.choice(what.texts), draw.choice(what.texts)
    new = bytes(data[other : other + length]) if draw.random() < 0.7 else draw.randbytes(size)
    data[start : start + size] = new[:size].ljust(size, draw.choice((b"\0", b" ", b"\xff")))


def _weights(draw: random.Random, what: Layout, data: bytearray) -> None:
    for _ in range(draw.randint(1, 20)):
        place = draw.randrange(what.end, len(data) - 4)
        number = draw.choice((float("nan"), float("inf"), 1e30, -1e30, 0.0))
        data[place : place + 4] = (
            struct.pack("<f", number) if draw.random() < 0.5 else draw.randbytes(4)
        )


MUTATIONS: tuple[Mutation, ...] = (
    _bytes, _bytes, _field("length"), _field("type"), _field("value"), _field("value"),
    _field("count", "dimensions", "shape", "offset"), _cut, _piece, _text, _text, _weights,
)  # fmt: skip


class Models:
    """Damaged models; the valid ones are written once."""

    def __init__(self, folder: Path) -> None:
        self._layouts = [
            Layout(tiny_gguf(folder / f"base-{number}.gguf", seed=number, **about).read_bytes())
            for number, about in enumerate(_BASES)
        ]

    def damaged(self, number: int) -> bytes:
        """The file of a number."""
        draw = random.Random(f"{SEED}-{number}")
        what = self._layouts[number % len(self._layouts)]
        data = bytearray(what.data)
        MUTATIONS[number % len(MUTATIONS)](draw, what, data)
        return bytes(data)


def outcome(path: Path) -> tuple[Outcome, str]:
    """The way of a file: the check of its header, the other process, and this one.

    Returns:
        What became of it, and the error; none of a file that was loaded.
    """
    try:
        read_header(path)
    except ModelError as error:
        return Outcome.HEADER, str(error)
    try:
        probe.probe_files(path)
    except CaptError as error:
        ended = "the process that looked at it (code" in str(error)
        return Outcome.ENDED if ended else Outcome.PROCESS, str(error)
    try:
        with LlamaModel.open(path, OPTIONS, name="The model") as model:
            model.extend(model.weights.tokenize(b"Pt. is well.\n", special=False)[:4] or [0])
    except CaptError as error:
        return Outcome.HERE, str(error)
    return Outcome.LOADED, ""


def outcomes(numbers: Sequence[int], folder: Path) -> Iterator[tuple[int, Outcome, str]]:
    """What becomes of the files of some numbers, each in the same place."""
    models, path = Models(folder / "valid"), folder / "work" / "damaged.gguf"
    path.parent.mkdir()
    for number in numbers:
        path.write_bytes(models.damaged(number))
        yield number, *outcome(path)
        assert [each.name for each in path.parent.iterdir()] == [path.name]
