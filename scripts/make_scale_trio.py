"""Write a trio with random weights and real vocabularies, to measure speed and memory on.

    python scripts/make_scale_trio.py FOLDER [--preset 1b|8b|tiny] [--seed 1]

Writes FOLDER/{target,expert,base}.gguf: llama architecture, Q4_0 with F32 norms, the target with
the vocabulary of Qwen2 (152k tokens), expert and base with that of Llama 2 (32k). The same seed
gives the same files, byte for byte. "1b" takes 1.2 GB and half a minute.

The weights say nothing, but a step costs what it costs with a real model, and the distributions
have the shape that decides what the decoder has to do: the last norm is scaled so that a step has
an entropy of about 2 nats on average (1 to 3 for most steps). The logits of random weights are
normally distributed; n of them with a standard deviation of 1.3 * sqrt(2 log n) have that entropy.
Expert and base differ in a part of the last layer alone, so that their contrast is about one nat.
"""

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import log, prod, sqrt
from pathlib import Path
from typing import BinaryIO

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from real_vocabularies import VocabulariesUnavailable, vocabulary

F32, Q4_0 = 0, 2
BLOCK, BLOCK_BYTES = 32, 18
NIBBLE_RMS = sqrt(sum(k * k for k in range(-8, 8)) / 16)
ALIGNMENT = 32
CHUNK_BLOCKS = 1 << 18
SPREAD = 1.3  # of the logits, over the largest that is still flat
CONTEXT = 4096


@dataclass(frozen=True)
class Shape:
    """The size of one model."""

    width: int
    layers: int
    inner: int
    heads: int
    heads_kv: int

    @property
    def width_kv(self) -> int:
        """Numbers that keys (and values) of a layer have."""
        return self.width // self.heads * self.heads_kv


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: `spread` is the standard deviation, or the value of a norm."""

    name: str
    shape: tuple[int, ...]  # the fastest dimension first
    spread: float
    kind: int = Q4_0

    @property
    def size(self) -> int:
        """Bytes."""
        count = prod(self.shape)
        return count * 4 if self.kind == F32 else count // BLOCK * BLOCK_BYTES


# Of target and proxies. 1b: 1.1 billion weights and twice 0.5; 8b: 8 billion and twice 6.7.
PRESETS = {
    "tiny": (Shape(256, 4, 512, 4, 2), Shape(128, 4, 256, 4, 4)),
    "1b": (Shape(1536, 14, 8960, 12, 2), Shape(1280, 24, 3456, 20, 4)),
    "8b": (Shape(4096, 32, 14336, 32, 8), Shape(4096, 32, 11008, 32, 32)),
}


def read_vocabulary_values(path: Path) -> tuple[list[bytes], int]:
    """The `tokenizer.*` entries of a GGUF file as they stand there, and the number of tokens."""
    data = path.read_bytes()
    entries, tokens = [], 0
    count = struct.unpack_from("<Q", data, 16)[0]
    at = 24
    for _ in range(count):
        start = at
        length = struct.unpack_from("<Q", data, at)[0]
        key = data[at + 8 : at + 8 + length].decode()
        at += 8 + length
        kind = struct.unpack_from("<I", data, at)[0]
        if key == "tokenizer.ggml.tokens":
            tokens = struct.unpack_from("<Q", data, at + 8)[0]
        at = _end_of_value(data, at + 4, kind)
        if key.startswith("tokenizer."):
            entries.append(data[start:at])
    return entries, tokens


def _end_of_value(data: bytes, at: int, kind: int) -> int:
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    if kind == 8:
        return at + 8 + int.from_bytes(data[at : at + 8], "little")
    if kind != 9:
        return at + sizes[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner != 8:
        return at + int(count) * sizes[inner]
    for _ in range(count):
        at += 8 + int.from_bytes(data[at : at + 8], "little")
    return at


def text_value(key: str, value: str) -> bytes:
    """A GGUF entry that holds text."""
    return _text(key) + struct.pack("<I", 8) + _text(value)


def number_value(key: str, value: int | float) -> bytes:
    """A GGUF entry that holds a whole number or a float."""
    if isinstance(value, float):
        return _text(key) + struct.pack("<If", 6, value)
    return _text(key) + struct.pack("<II", 4, value)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def model_values(shape: Shape, title: str, tokens: int) -> list[bytes]:
    """The entries that describe a llama model."""
    numbers: dict[str, int | float] = {
        "general.file_type": 2,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": shape.width,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.inner,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.heads_kv,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": shape.width // shape.heads,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": tokens,
    }
    return [
        text_value("general.architecture", "llama"),
        text_value("general.name", title),
        *(number_value(key, value) for key, value in numbers.items()),
    ]


def logit_spread(tokens: int) -> float:
    """Standard deviation of normal logits over `tokens` tokens with an entropy of about 2 nats."""
    return SPREAD * sqrt(2 * log(tokens))


def tensors(shape: Shape, tokens: int) -> Iterator[Tensor]:
    """All tensors of a model. Every layer adds about as much as the embedding holds."""
    width, inner = shape.width, shape.inner
    yield Tensor("token_embd.weight", (width, tokens), 0.3)
    for layer in range(shape.layers):
        name = f"blk.{layer}."
        yield Tensor(name + "attn_norm.weight", (width,), 1.0, F32)
        yield Tensor(name + "attn_q.weight", (width, width), 1.4 / sqrt(width))
        yield Tensor(name + "attn_k.weight", (width, shape.width_kv), 1.4 / sqrt(width))
        yield Tensor(name + "attn_v.weight", (width, shape.width_kv), 1.0 / sqrt(width))
        yield Tensor(name + "attn_output.weight", (width, width), 1.0 / sqrt(width))
        yield Tensor(name + "ffn_norm.weight", (width,), 1.0, F32)
        yield Tensor(name + "ffn_gate.weight", (width, inner), 1.0 / sqrt(width))
        yield Tensor(name + "ffn_up.weight", (width, inner), 1.0 / sqrt(width))
        yield Tensor(name + "ffn_down.weight", (inner, width), 1.0 / sqrt(inner))
    yield Tensor("output_norm.weight", (width,), logit_spread(tokens), F32)
    yield Tensor("output.weight", (width, tokens), 1.0 / sqrt(width))


def write_tensor(file: BinaryIO, tensor: Tensor, seed: tuple[int, ...]) -> None:
    """Writes random blocks with the right spread, or a norm.

    A block is 32 random numbers from -8 to 7 with one scale. Their mean is -1/2, so the scale has
    a random sign: rows without a common direction, as in real models.
    """
    if tensor.kind == F32:
        file.write(np.full(tensor.shape, tensor.spread, np.float32).tobytes())
        return
    random = np.random.Generator(np.random.SFC64(seed))
    low, high = np.array([tensor.spread / NIBBLE_RMS], np.float16).tobytes()
    blocks = prod(tensor.shape) // BLOCK
    for start in range(0, blocks, CHUNK_BLOCKS):
        count = min(CHUNK_BLOCKS, blocks - start)
        words = random.integers(0, 1 << 64, -(-count * BLOCK_BYTES // 8), np.uint64)
        data = words.view(np.uint8)[: count * BLOCK_BYTES].reshape(count, BLOCK_BYTES)
        data[:, 0] = low
        data[:, 1] = (data[:, 1] & 0x80) | high
        file.write(data.tobytes())


def write_model(
    path: Path, shape: Shape, vocabulary_file: Path, seed: int, *, own_from: int | None = None
) -> None:
    """Writes one model.

    Args:
        path: of the new file.
        shape: of the model.
        vocabulary_file: GGUF file whose vocabulary it gets.
        seed: of the weights.
        own_from: layers from here on have other feed-forward weights than the model of the same
            seed without this.
    """
    entries, tokens = read_vocabulary_values(vocabulary_file)
    values = model_values(shape, f"random {path.stem}", tokens) + entries
    wanted = list(tensors(shape, tokens))
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(wanted), len(values)))
        file.writelines(values)
        offset = 0
        for tensor in wanted:
            file.write(_text(tensor.name) + struct.pack("<I", len(tensor.shape)))
            file.write(struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape))
            file.write(struct.pack("<IQ", tensor.kind, offset))
            offset += -(-tensor.size // ALIGNMENT) * ALIGNMENT
        for number, tensor in enumerate(wanted):
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            layer = int(tensor.name.split(".")[1]) if tensor.name.startswith("blk.") else -1
            own = own_from is not None and layer >= own_from and "ffn_down" in tensor.name
            write_tensor(file, tensor, (seed, number, int(own)))
        file.write(b"\0" * (-file.tell() % ALIGNMENT))


def write_trio(folder: Path, preset: str, seed: int) -> list[Path]:
    """Writes the three files and returns their paths.

    Raises:
        VocabulariesUnavailable: the real vocabularies could not be fetched.
    """
    large, small = PRESETS[preset]
    qwen, llama = vocabulary("qwen2"), vocabulary("llama-spm")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{role}.gguf" for role in ("target", "expert", "base")]
    write_model(paths[0], large, qwen, seed)
    write_model(paths[1], small, llama, seed + 1, own_from=small.layers - 1)
    write_model(paths[2], small, llama, seed + 1)
    return paths


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the three files go")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="1b")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    try:
        for path in write_trio(args.folder, args.preset, args.seed):
            print(f"{path}  {path.stat().st_size / 1e6:,.0f} MB")
    except VocabulariesUnavailable as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
