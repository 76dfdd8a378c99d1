"""The header check: a damaged file gets a named error in Python, before llama.cpp sees it."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from capt_local.engine.gguf_header import read_header, read_model_header, rules
from capt_local.engine.library import library
from capt_local.errors import ModelError
from tests.tiny_models import CONTEXT, WIDTH


def test_a_header_holds_the_scalars_and_the_size_of_each_tensor(
    tiny_path: Callable[..., Path],
) -> None:
    header = read_header(tiny_path("spm"))
    assert header.architecture == "llama"
    assert header.number("context_length") == CONTEXT
    assert header.number("nothing", 7) == 7
    assert header.lengths["tokenizer.ggml.tokens"] == header.values["llama.vocab_size"]
    embedding = next(one for one in header.tensors if one.name == "token_embd.weight")
    assert embedding.shape == (WIDTH, header.lengths["tokenizer.ggml.tokens"])
    assert embedding.size == 4 * embedding.shape[0] * embedding.shape[1]
    assert sum(one.size for one in header.tensors) < header.file_size


def test_sizes_of_number_formats_are_those_of_ggml() -> None:
    ggml = library().ggml
    block = ggml("ggml_blck_size", ctypes.c_int64, ctypes.c_int)
    size = ggml("ggml_type_size", ctypes.c_size_t, ctypes.c_int)
    known = {kind: (block(kind), size(kind)) for kind in range(43) if block(kind)}
    assert known == rules().tensor_types


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "text.gguf").write_bytes(b"This is a letter, not a model." * 10)
    for name, said in (
        ("missing.gguf", "no such model file"),
        ("empty.gguf", "not a GGUF file"),
        ("text.gguf", "not a GGUF file"),
    ):
        with pytest.raises(ModelError, match=said) as caught:
            read_header(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(ModelError, match="is a folder"):
        read_header(tmp_path)


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


def test_old_versions_and_parts_of_models_are_named(
    tiny_path: Callable[..., Path], tmp_path: Path
) -> None:
    whole = tiny_path().read_bytes()
    path = tmp_path / "other.gguf"
    path.write_bytes(whole[:4] + struct.pack("<I", 1) + whole[8:])
    with pytest.raises(ModelError, match="version 1; 2 and 3 can be read"):
        read_header(path)
    count = struct.unpack_from("<Q", whole, 16)[0]
    key = b"split.count"
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<IH", 2, 3)
    path.write_bytes(whole[:16] + struct.pack("<Q", count + 1) + entry + whole[24:])
    with path.open("ab") as file:
        file.write(bytes(64))
    for name in ("other.gguf", "other-00002-of-00003.gguf", "other-00001-of-00002.gguf"):
        with pytest.raises(ModelError, match=r"is not the first of the 3 parts|is not beside it"):
            read_model_header(path.rename(tmp_path / name))
        path = tmp_path / name


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
