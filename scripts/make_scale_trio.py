"""Write a trio with random weights and real vocabularies, to measure speed and memory on.

    python -m scripts.make_scale_trio FOLDER [--preset 1b|8b|tiny] [--seed 1]

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

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import log, prod, sqrt
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
import typer
from gguf import GGMLQuantizationType as Kind

from scripts.real_vocabularies import VocabulariesUnavailable, vocabulary

BLOCK, BLOCK_BYTES = gguf.GGML_QUANT_SIZES[Kind.Q4_0]
NIBBLE_RMS = sqrt(sum(k * k for k in range(-8, 8)) / 16)
SPREAD = 1.3  # of the logits, over the largest that is still flat
CONTEXT = 4096


@dataclass(frozen=True)
class Shape:
    width: int
    layers: int
    inner: int
    heads: int
    heads_kv: int


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: `spread` is the standard deviation, or the value of a norm."""

    name: str
    shape: tuple[int, ...]  # rows first
    spread: float


# Of target and proxies. 1b: 1.1 billion weights and twice 0.5; 8b: 8 billion and twice 6.7.
PRESETS = {
    "tiny": (Shape(256, 4, 512, 4, 2), Shape(128, 4, 256, 4, 4)),
    "1b": (Shape(1536, 14, 8960, 12, 2), Shape(1280, 24, 3456, 20, 4)),
    "8b": (Shape(4096, 32, 14336, 32, 8), Shape(4096, 32, 11008, 32, 32)),
}


def tensors(shape: Shape, tokens: int) -> Iterator[Tensor]:
    """All tensors of a model. Every layer adds about as much as the embedding holds."""
    width, inner = shape.width, shape.inner
    kv = width // shape.heads * shape.heads_kv
    yield Tensor("token_embd.weight", (tokens, width), 0.3)
    for layer in range(shape.layers):
        name = f"blk.{layer}."
        yield Tensor(name + "attn_norm.weight", (width,), 1.0)
        yield Tensor(name + "attn_q.weight", (width, width), 1.4 / sqrt(width))
        yield Tensor(name + "attn_k.weight", (kv, width), 1.4 / sqrt(width))
        yield Tensor(name + "attn_v.weight", (kv, width), 1.0 / sqrt(width))
        yield Tensor(name + "attn_output.weight", (width, width), 1.0 / sqrt(width))
        yield Tensor(name + "ffn_norm.weight", (width,), 1.0)
        yield Tensor(name + "ffn_gate.weight", (inner, width), 1.0 / sqrt(width))
        yield Tensor(name + "ffn_up.weight", (inner, width), 1.0 / sqrt(width))
        yield Tensor(name + "ffn_down.weight", (width, inner), 1.0 / sqrt(inner))
    yield Tensor("output_norm.weight", (width,), SPREAD * sqrt(2 * log(tokens)))
    yield Tensor("output.weight", (tokens, width), 1.0 / sqrt(width))


def values(tensor: Tensor, seed: tuple[int, ...]) -> np.ndarray:
    """Random Q4_0 blocks with the right spread as bytes, or a norm.

    A block is 32 random numbers from -8 to 7 with one scale. Their mean is -1/2, so the scale has
    a random sign: rows without a common direction, as in real models.
    """
    if len(tensor.shape) == 1:
        return np.full(tensor.shape, tensor.spread, np.float32)
    random = np.random.Generator(np.random.SFC64(seed))
    low, high = np.array([tensor.spread / NIBBLE_RMS], np.float16).tobytes()
    size = prod(tensor.shape) // BLOCK * BLOCK_BYTES
    data = random.integers(0, 1 << 64, -(-size // 8), np.uint64).view(np.uint8)[:size]
    blocks = data.reshape(-1, BLOCK_BYTES)
    blocks[:, 0] = low
    blocks[:, 1] = (blocks[:, 1] & 0x80) | high
    return data.reshape(tensor.shape[0], -1)


def write_model(
    path: Path, shape: Shape, vocabulary_file: Path, seed: int, *, own_from: int | None = None
) -> None:
    """Writes one model, a tensor at a time.

    Args:
        path: of the new file.
        shape: of the model.
        vocabulary_file: GGUF file whose vocabulary it gets.
        seed: of the weights.
        own_from: layers from here on have other feed-forward weights than the model of the same
            seed without this.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"random {path.stem}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_rope_freq_base(10000.0)
    tokens = 0
    for key, value in gguf.GGUFReader(vocabulary_file).fields.items():
        if key.startswith("tokenizer."):
            inner = value.types[-1] if len(value.types) > 1 else None
            writer.add_key_value(key, value.contents(), value.types[0], sub_type=inner)
            tokens = len(value.data) if key == "tokenizer.ggml.tokens" else tokens
    writer.add_vocab_size(tokens)
    wanted = list(tensors(shape, tokens))
    for one in wanted:
        if len(one.shape) == 1:
            writer.add_tensor_info(one.name, one.shape, np.dtype(np.float32), 4 * one.shape[0])
        else:
            size = prod(one.shape) // BLOCK * BLOCK_BYTES
            packed = (one.shape[0], size // one.shape[0])
            writer.add_tensor_info(one.name, packed, np.dtype(np.uint8), size, Kind.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for number, one in enumerate(wanted):
        layer = int(one.name.split(".")[1]) if one.name.startswith("blk.") else -1
        own = own_from is not None and layer >= own_from and "ffn_down" in one.name
        writer.write_tensor_data(values(one, (seed, number, int(own))))
    writer.close()


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


def main(folder: Path, preset: Literal["1b", "8b", "tiny"] = "1b", seed: int = 1) -> None:
    """Writes target, expert and base with random weights into FOLDER."""
    try:
        for path in write_trio(folder, preset, seed):
            print(f"{path}  {path.stat().st_size / 1e6:,.0f} MB")
    except VocabulariesUnavailable as error:
        sys.exit(str(error))


if __name__ == "__main__":
    typer.run(main)
