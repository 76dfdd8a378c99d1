"""Headers: what they say, and what they may not say, each lie refused by name."""

from __future__ import annotations

import ctypes
import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from capt_local.errors import ModelError
from capt_local.llama.gguf_header import (
    ARCHITECTURES,
    TOKENIZERS,
    parse_header,
    read_header,
    tensor_types,
)
from capt_local.llama.library import library
from capt_local.llama.weights import Weights
from tests.fuzz.seeds import gguf, text


def test_sizes_of_number_formats_are_those_of_ggml() -> None:
    ggml = library().function
    block = ggml("ggml_blck_size", ctypes.c_int64, ctypes.c_int)
    size = ggml("ggml_type_size", ctypes.c_size_t, ctypes.c_int)
    known = {kind: (block(kind), size(kind)) for kind in range(43) if block(kind)}
    assert known == tensor_types()


@pytest.mark.parametrize("part", [24, 60, 500, 4000, 0.5, 0.9, -1])
def test_a_cut_off_file_is_noticed_wherever_it_ends(
    tiny_path: Callable[..., Path], tmp_path: Path, part: int | float
) -> None:
    whole = tiny_path().read_bytes()
    end = int(len(whole) * part) if isinstance(part, float) else part
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[:end])
    with pytest.raises(ModelError, match=r"^cut.gguf is cut off: it has [\d,]+ bytes but needs"):
        read_header(path)


def test_old_versions_are_refused(tiny_path: Callable[..., Path], tmp_path: Path) -> None:
    whole, path = tiny_path().read_bytes(), tmp_path / "other.gguf"
    path.write_bytes(whole[:4] + struct.pack("<I", 1) + whole[8:])
    with pytest.raises(ModelError, match="version 1; 2 and 3 can be read"):
        read_header(path)


def test_no_damage_to_a_header_escapes_as_another_error(
    tiny_path: Callable[..., Path], tmp_path: Path
) -> None:
    whole = tiny_path().read_bytes()
    random = np.random.default_rng(1)
    path = tmp_path / "damaged.gguf"
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for place in random.integers(4, 12_000, random.integers(1, 5)).tolist():
            data[place] = int(random.integers(0, 256))
        path.write_bytes(data)
        try:
            read_header(path)
        except ModelError as error:
            refused += 1
            assert str(error).startswith("damaged.gguf")
    assert refused > 50


def test_impossible_lengths_are_refused_without_reading_them(
    tiny_path: Callable[..., Path], tmp_path: Path
) -> None:
    whole = tiny_path().read_bytes()
    path = tmp_path / "long.gguf"
    for place in (8, 16, 24):  # tensors, entries, length of the first key
        path.write_bytes(whole[:place] + struct.pack("<Q", 1 << 62) + whole[place + 8 :])
        with pytest.raises(ModelError, match=r"is damaged"):
            read_header(path)


U32, F32, TEXT, LIST = 4, 6, 8, 9


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def whole(key: str, value: int) -> bytes:
    return pair(key, U32, struct.pack("<I", value))


def words(key: str, *values: str) -> bytes:
    return pair(key, LIST, struct.pack("<IQ", TEXT, len(values)) + b"".join(map(text, values)))


def numbers(key: str, count: int, kind: int = F32) -> bytes:
    return pair(key, LIST, struct.pack("<IQ", kind, count) + bytes(4 * count))


def tensor(name: str, shape: tuple[int, ...] = (8, 2), *, offset: int = 0, kind: int = 0) -> bytes:
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


LLAMA = pair("general.architecture", TEXT, text("llama"))
TOKENS = words("tokenizer.ggml.tokens", "a", "b")

LIES: dict[str, tuple[list[bytes], list[bytes], str]] = {
    "no architecture": ([], [], "a file that names none is not among the architectures"),
    "an architecture of another kind": (
        [pair("general.architecture", TEXT, text("bert"))], [], "bert is not among the arch"),
    "an architecture that nobody knows": (
        [pair("general.architecture", TEXT, text("\x1b[2Jx\ny"))], [], "what the file names is"),
    "a tokenizer that rewrites the text": (
        [LLAMA, pair("tokenizer.ggml.model", TEXT, text("bert"))], [], "bert is not among the tok"),
    "a key that stands there twice": ([LLAMA, whole("a", 1), whole("a", 2)], [], "there twice"),
    "a key without a name": ([LLAMA, whole("", 1)], [], "empty or stands there twice"),
    "a key that is no text": (
        [LLAMA, struct.pack("<Q", 1) + b"\xff" + struct.pack("<II", U32, 1)], [], "not UTF-8"),
    "a key that is too long": ([LLAMA, whole("k" * 65_536, 1)], [], "longer than any"),
    "a value of an unknown type": ([LLAMA, pair("a", 13, b"")], [], "a value has an unknown type"),
    "a list of lists": ([LLAMA, pair("a", LIST, struct.pack("<IQ", LIST, 1))], [], "a list has an"),
    "a list that is too long": (
        [LLAMA, pair("a", LIST, struct.pack("<IQ", TEXT, 1 << 23))], [], "longer than any"),
    "a long text in a list": (
        [LLAMA, pair("a", LIST, struct.pack("<IQQ", TEXT, 1, 1 << 25))], [], "longer than any"),
    "four billion layers": ([LLAMA, whole("llama.block_count", (1 << 32) - 1)], [], "block_count"),
    "heads below nothing": (
        [LLAMA, pair("llama.attention.head_count", 5, struct.pack("<i", -1))], [], "head_count"),
    "heads of layers that are no whole numbers": (
        [LLAMA, numbers("llama.attention.head_count_kv", 3)], [], "head_count_kv"),
    "no layers": ([LLAMA, whole("llama.block_count", 0)], [], "block_count is no possible size"),
    "a part of a model": ([LLAMA, whole("split.count", 3)], [], "is one of several parts"),
    "an alignment of 3": ([LLAMA, whole("general.alignment", 3)], [], "alignment"),
    "an alignment that is a float": (
        [LLAMA, pair("general.alignment", F32, struct.pack("<f", 32))], [], "alignment"),
    "tokens that are numbers": ([LLAMA, numbers("tokenizer.ggml.tokens", 2)], [], "another type"),
    "tokens that are one text": (
        [LLAMA, pair("tokenizer.ggml.tokens", TEXT, text("a"))], [], "a list of its vocabulary is"),
    "scores of fewer tokens than there are": (
        [LLAMA, numbers("tokenizer.ggml.scores", 1), TOKENS], [], "too short"),
    "a tensor twice": ([LLAMA], [tensor("a"), tensor("a", offset=64)], "there twice"),
    "a tensor without a name": ([LLAMA], [tensor("")], "empty or stands there twice"),
    "a tensor with a long name": ([LLAMA], [tensor("x" * 64)], "longer than any"),
    "tensors on each other": ([LLAMA], [tensor("a"), tensor("b", offset=32)], "does not begin"),
    "a hole between tensors": ([LLAMA], [tensor("a"), tensor("b", offset=96)], "does not begin"),
    "a tensor behind the end": ([LLAMA], [tensor("a", (1 << 20, 2))], "cut off"),
    "a tensor of five dimensions": ([LLAMA], [tensor("a", (1,) * 5)], "impossible shape"),
    "a tensor whose size overflows": ([LLAMA], [tensor("a", (1 << 32, 1 << 32))], "impossible sh"),
    "half a block": ([LLAMA], [tensor("a", (16, 2), kind=2)], "impossible shape"),
    "a number format that was taken out": ([LLAMA], [tensor("a", kind=4)], "number format 4"),
}  # fmt: skip


def refusal(data: bytes) -> str:
    with pytest.raises(ModelError) as caught:
        parse_header(io.BytesIO(data), "a.gguf", len(data))
    return str(caught.value)


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_lie_in_a_header_is_refused_by_name(lie: tuple[list[bytes], list[bytes], str]) -> None:
    pairs, tensors, said = lie
    found = refusal(gguf(pairs, tensors, 256))
    assert found.startswith("a.gguf") and said in found and found.isprintable()


def test_a_lie_about_a_length_takes_no_memory(tmp_path: Path) -> None:
    """A sparse file that is as large as a text claims to be: the text is not read."""
    file = tmp_path / "sparse.gguf"
    file.write_bytes(gguf([LLAMA, pair("a", TEXT, struct.pack("<Q", 1 << 33))], [], 0))
    with file.open("r+b") as stream:
        stream.truncate(1 << 34)
    with pytest.raises(ModelError, match="a text is longer than any that is used"):
        read_header(file)


def test_every_architecture_is_one_of_the_pinned_llama_cpp() -> None:
    """The names stand in its library; so a new version is looked through when it is pinned."""
    path = Path(library().api.__file__).parent / "lib"
    found = b"".join(each.read_bytes() for each in path.glob("*llama*") if each.is_file())
    assert b"\0no-such-architecture\0" not in found
    assert not {name for name in ARCHITECTURES | TOKENIZERS if name.encode() + b"\0" not in found}


def test_such_a_file_never_reaches_llama_cpp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_path: Callable[..., Path]
) -> None:
    file = tmp_path / "other.gguf"
    file.write_bytes(tiny_path().read_bytes().replace(b"llama", b"bertx"))
    monkeypatch.setattr(Weights, "_load", lambda *_: pytest.fail("llama.cpp was asked"))
    with pytest.raises(ModelError, match=r"^other\.gguf: bertx is not among the architectures"):
        Weights(file)


def test_an_error_of_llama_cpp_that_repeats_the_file_can_be_shown(
    tmp_path: Path, tiny_path: Callable[..., Path]
) -> None:
    data = tiny_path().read_bytes()
    assert text("gpt-2") in data
    file = tmp_path / "other.gguf"
    file.write_bytes(data.replace(text("gpt-2"), text("\x1b[2Jx")))
    with pytest.raises(ModelError, match="unknown pre-tokenizer") as caught:
        Weights(file)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
