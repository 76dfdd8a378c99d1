"""Tiny GGUF models with random weights, written by the tests that use them.

`tiny_gguf(path, seed=1)` writes a llama model of two layers that really runs; the same seed gives
the same file. Other architectures stand for models that forget: a sliding window, a recurrent one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import sqrt
from pathlib import Path
from typing import Literal

import gguf
import numpy as np

from capt_local.tokenization import TokenKind
from scripts.common import write_gguf
from tests.tiny_vocabularies import TEMPLATE, Flavour, TinyVocabulary, tiny_vocabulary

Architecture = Literal["llama", "gemma3", "mamba"]

WIDTH, INNER, HEADS, LAYERS, CONTEXT = 64, 128, 4, 2, 512
SPREAD = 4.0  # standard deviation of the logits
WINDOW = 16  # of the sliding-window model
_STATE, _KERNEL, _STEP_RANK = 4, 4, 4  # of the recurrent model


def tiny_gguf(
    path: Path,
    *,
    seed: int,
    flavour: Flavour = "bpe",
    architecture: Architecture = "llama",
    context: int = CONTEXT,
    nan: bool = False,
    number_format: str = "F32",
    template: str | None = TEMPLATE,
    tied: bool = False,
    layers: int = LAYERS,
    pre_tokenizer: str | None = None,
    unused: int = 0,
    more_rows: int = 0,
) -> Path:
    """Writes a model.

    Args:
        path: of the new file.
        seed: of the weights.
        flavour: of the vocabulary; see `tests.tiny_vocabularies`.
        architecture: of the model.
        context: tokens that it claims to be trained for.
        nan: one weight of the last layer is NaN.
        number_format: of the matrices, such as "Q8_0".
        template: chat template, or None.
        tied: the embeddings serve as output too.
        layers: of the model.
        pre_tokenizer: that a byte-level file names; "gpt-2" by default.
        unused: tokens behind the others that fill up the embeddings, as converters name them.
        more_rows: rows of the embeddings behind those of all tokens.

    Returns:
        `path`.
    """
    vocabulary = tiny_vocabulary(flavour)
    vocabulary.tokens.extend(f"[PAD{number}]" for number in range(unused))
    vocabulary.kinds.extend([int(TokenKind.UNUSED)] * unused)
    writer = gguf.GGUFWriter(str(path), architecture)
    _add_sizes(writer, architecture, len(vocabulary), context, layers)
    _add_vocabulary(writer, vocabulary, template, pre_tokenizer)
    random = np.random.default_rng(seed)
    for name, shape in _tensors(architecture, len(vocabulary) + more_rows, layers):
        if not (tied and name == "output.weight"):
            _add_tensor(writer, name, _values(random, name, shape, nan), number_format)
    write_gguf(writer)
    return path


def tiny_adapter(path: Path, *, seed: int, rank: int = 2, architecture: str = "llama") -> Path:
    """Writes a LoRA adapter for the tiny llama model."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        name = f"blk.{layer}.ffn_down.weight"
        tensors[f"{name}.lora_a"] = random.standard_normal((rank, INNER)) / sqrt(INNER)
        tensors[f"{name}.lora_b"] = random.standard_normal((WIDTH, rank))
    return adapter_gguf(path, tensors, alpha=rank, architecture=architecture)


def adapter_gguf(
    path: Path, tensors: Mapping[str, np.ndarray], *, alpha: float, architecture: str = "llama"
) -> Path:
    """Writes a LoRA adapter of these tensors by name (as numpy has them: rows first)."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_key_value("adapter.lora.alpha", alpha, gguf.GGUFValueType.FLOAT32)
    for name, values in tensors.items():
        writer.add_tensor(name, values.astype(np.float32))
    write_gguf(writer)
    return path


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray, number_format: str) -> None:
    if values.ndim < 2 or number_format == "F32":
        writer.add_tensor(name, values)
        return
    kind = gguf.GGMLQuantizationType[number_format]
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _add_sizes(
    writer: gguf.GGUFWriter, architecture: Architecture, tokens: int, context: int, layers: int
) -> None:
    writer.add_name("tiny")
    writer.add_file_type(0)
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_vocab_size(tokens)
    writer.add_layer_norm_rms_eps(1e-5)
    if architecture == "mamba":
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        writer.add_ssm_conv_kernel(_KERNEL)
        writer.add_ssm_inner_size(INNER)
        writer.add_ssm_state_size(_STATE)
        writer.add_ssm_time_step_rank(_STEP_RANK)
        return
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_freq_base(10000.0)
    if architecture == "gemma3":
        writer.add_sliding_window(WINDOW)
        writer.add_key_length(WIDTH // HEADS)
        writer.add_value_length(WIDTH // HEADS)


def _add_vocabulary(
    writer: gguf.GGUFWriter,
    vocabulary: TinyVocabulary,
    template: str | None,
    pre_tokenizer: str | None,
) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(pre_tokenizer or ("gpt-2" if vocabulary.merges else "default"))
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
        writer.add_unk_token_id(vocabulary.ids["unknown"])
    writer.add_bos_token_id(vocabulary.ids["bos"])
    writer.add_eos_token_id(vocabulary.ids["eos"])
    writer.add_add_bos_token(vocabulary.model == "llama")
    if template is not None:
        writer.add_chat_template(template)


def _tensors(
    architecture: Architecture, tokens: int, layers: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes (as numpy has them: rows first)."""
    yield "token_embd.weight", (tokens, WIDTH)
    for layer in range(layers):
        parts = _recurrent_layer() if architecture == "mamba" else _attention_layer(architecture)
        for name, shape in parts:
            yield f"blk.{layer}.{name}", shape
    yield "output_norm.weight", (WIDTH,)
    yield "output.weight", (tokens, WIDTH)


def _attention_layer(architecture: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "attn_norm.weight", (WIDTH,)
    for part in ("q", "k", "v", "output"):
        yield f"attn_{part}.weight", (WIDTH, WIDTH)
    yield "ffn_norm.weight", (WIDTH,)
    yield "ffn_gate.weight", (INNER, WIDTH)
    yield "ffn_up.weight", (INNER, WIDTH)
    yield "ffn_down.weight", (WIDTH, INNER)
    if architecture == "gemma3":
        yield "attn_q_norm.weight", (WIDTH // HEADS,)
        yield "attn_k_norm.weight", (WIDTH // HEADS,)
        yield "post_attention_norm.weight", (WIDTH,)
        yield "post_ffw_norm.weight", (WIDTH,)


def _recurrent_layer() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "attn_norm.weight", (WIDTH,)
    yield "ssm_in.weight", (2 * INNER, WIDTH)
    yield "ssm_conv1d.weight", (INNER, _KERNEL)
    yield "ssm_conv1d.bias", (INNER,)
    yield "ssm_x.weight", (_STEP_RANK + 2 * _STATE, INNER)
    yield "ssm_dt.weight", (INNER, _STEP_RANK)
    yield "ssm_dt.bias", (INNER,)
    yield "ssm_a", (INNER, _STATE)
    yield "ssm_d", (INNER,)
    yield "ssm_out.weight", (WIDTH, INNER)


def _values(
    random: np.random.Generator, name: str, shape: tuple[int, ...], nan: bool
) -> np.ndarray:
    values = random.standard_normal(shape) / sqrt(shape[-1])
    if name == "token_embd.weight":
        values = random.standard_normal(shape)
    if name.endswith("norm.weight"):
        values = np.full(shape, SPREAD if name == "output_norm.weight" else 1.0)
    if name.endswith("ssm_a"):
        values = -np.exp(values)
    if nan and name == f"blk.{LAYERS - 1}.ffn_down.weight":
        values[0, 0] = np.nan
    return values.astype(np.float32)
