"""A tiny BERT with random weights, its forward pass in numpy, and a head."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np

WIDTH, INNER, HEADS, LAYERS, CONTEXT = 32, 64, 4, 2, 64
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *":.?!-,", *"qa0123456789", "##s",
         "true", "false", "pain", "chest", "yes", "no", "the", "patient", "has", "question",
         "answer"]  # fmt: skip
SPECIAL = WORDS[:5]
Weights = dict[str, np.ndarray]


def tiny_scorer(folder: Path, seed: int = 1, pooling: int | None = 1, **about: str) -> Path:
    """Writes encoder.gguf and head.safetensors."""
    folder.mkdir(exist_ok=True, parents=True)
    encoder = folder / "encoder.gguf"
    weights = tiny_weights(seed)
    writer = gguf.GGUFWriter(encoder, "bert")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(gguf.PoolingType(pooling))
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    words = [w if w in SPECIAL else w[2:] if w[:2] == "##" else f"\u2581{w}" for w in WORDS]
    writer.add_token_list(words)
    writer.add_token_types([3 if word in SPECIAL else 1 for word in WORDS])
    writer.add_token_type_count(2)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_unk_token_id(1)
    writer.add_sep_token_id(3)
    writer.add_pad_token_id(0)
    for name, value in weights.items():
        if not name.startswith("head"):
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    about = {"encoder_sha256": hashlib.sha256(encoder.read_bytes()).hexdigest(), **about}
    write_head(folder / "head.safetensors", weights["head.weight"], weights["head.bias"], about)
    return folder


def write_head(path: Path, weight: np.ndarray, bias: np.ndarray, about: dict[str, str]) -> None:
    """A safetensors file: the length of a header in JSON, the header, the numbers."""
    end = weight.nbytes + bias.nbytes
    header = {
        "__metadata__": about,
        "weight": {"dtype": "F32", "shape": weight.shape, "data_offsets": [0, weight.nbytes]},
        "bias": {"dtype": "F32", "shape": bias.shape, "data_offsets": [weight.nbytes, end]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + weight.tobytes() + bias.tobytes())


def tiny_weights(seed: int) -> Weights:
    """All tensors; matrices of shape (out, in)."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.4).astype(np.float32)

    found = {
        "token_embd.weight": normal(len(WORDS), WIDTH),
        "position_embd.weight": normal(CONTEXT, WIDTH),
        "token_types.weight": normal(2, WIDTH),
        "token_embd_norm.weight": 1 + normal(WIDTH),
        "token_embd_norm.bias": normal(WIDTH),
        "head.weight": normal(2, WIDTH),
        "head.bias": normal(2),
    }
    for layer in range(LAYERS):
        for name, shape in (
            ("attn_q", (WIDTH, WIDTH)),
            ("attn_k", (WIDTH, WIDTH)),
            ("attn_v", (WIDTH, WIDTH)),
            ("attn_output", (WIDTH, WIDTH)),
            ("ffn_up", (INNER, WIDTH)),
            ("ffn_down", (WIDTH, INNER)),
        ):
            found[f"blk.{layer}.{name}.weight"] = normal(*shape)
            found[f"blk.{layer}.{name}.bias"] = normal(shape[0])
        for name in ("attn_output_norm", "layer_output_norm"):
            found[f"blk.{layer}.{name}.weight"] = 1 + normal(WIDTH)
            found[f"blk.{layer}.{name}.bias"] = normal(WIDTH)
    return found


def pooled(weights: Weights, tokens: list[int]) -> np.ndarray:
    """The mean of BERT's last hidden states (Devlin et al. 2019), shape (WIDTH,)."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = weights["token_embd.weight"][tokens] + weights["position_embd.weight"][: len(tokens)]
    x = norm(x + weights["token_types.weight"][0], "token_embd_norm")
    for layer in range(LAYERS):
        at = f"blk.{layer}"
        q, k, v = (
            linear(x, f"{at}.attn_{part}").reshape(len(tokens), HEADS, -1).swapaxes(0, 1)
            for part in "qkv"
        )
        shares = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(WIDTH / HEADS))
        mixed = shares / shares.sum(-1, keepdims=True) @ v
        x = norm(
            x + linear(mixed.swapaxes(0, 1).reshape(len(tokens), WIDTH), f"{at}.attn_output"),
            f"{at}.attn_output_norm",
        )
        up = linear(x, f"{at}.ffn_up")
        gelu = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        x = norm(x + linear(gelu, f"{at}.ffn_down"), f"{at}.layer_output_norm")
    return x.mean(0)
