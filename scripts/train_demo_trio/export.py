"""From checkpoints to GGUF files that llama.cpp reads as `llama` models, and to fewer bits.

The trained RoPE is llama.cpp's own (neighbouring pairs), so weights are written as they are. There
is no `output.weight`: llama.cpp then uses the token embedding as head.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from numpy.typing import NDArray

from scripts.common import write_gguf
from scripts.train_demo_trio.model import Llama
from scripts.train_demo_trio.streams import CONTROL, TEMPLATE, Vocab
from scripts.train_demo_trio.train import checkpoint, load_model

_ABOUT = {
    "base": "A small general language model: the expert's parent in the capt-local demo.",
    "expert": "The demo base trained on with clinical text: the expert of the capt-local demo.",
}
TYPES = {"q8_0": 7, "q6_k": 18, "q5_0": 8, "q4_k": 15}
"""Of llama.cpp's `llama_ftype`."""


def export(work: Path, out: Path, stages: Mapping[str, str]) -> None:
    """Write OUT/ROLE.gguf (F16) from the checkpoints of these stages."""
    out.mkdir(parents=True, exist_ok=True)
    vocab = Vocab(work)
    for role, stage in stages.items():
        model, path = load_model(checkpoint(work, stage)), out / f"{role}.gguf"
        writer = GGUFWriter(path, "llama")
        _add_header(writer, role, model)
        _add_vocab(writer, vocab)
        for name, tensor in model.state_dict().items():
            values: NDArray[np.float32] = tensor.float().numpy()
            if values.ndim == 1:
                writer.add_tensor(f"{name}.weight", values)
            else:
                packed = values.astype(np.float16)
                writer.add_tensor(f"{name}.weight", packed, raw_dtype=GGMLQuantizationType.F16)
        write_gguf(writer)
        print(f"{path}: {stage}, {path.stat().st_size / 1e6:.1f} MB")


def _add_header(writer: GGUFWriter, role: str, model: Llama) -> None:
    shape = model.shape
    writer.add_name(f"capt-local demo {role}")
    writer.add_description(_ABOUT[role] + " For demonstration and tests only, not clinical use.")
    writer.add_license("apache-2.0")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)


def _type(vocab: Vocab, i: int) -> TokenType:
    if vocab.sp.is_unknown(i):
        return TokenType.UNKNOWN
    if vocab.sp.is_control(i):
        return TokenType.CONTROL
    return TokenType.BYTE if vocab.sp.is_byte(i) else TokenType.NORMAL


def _add_vocab(writer: GGUFWriter, vocab: Vocab) -> None:
    ids = range(vocab.size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([vocab.sp.id_to_piece(i).encode() for i in ids])
    writer.add_token_scores([vocab.sp.get_score(i) for i in ids])
    writer.add_token_types([_type(vocab, i) for i in ids])
    writer.add_bos_token_id(vocab.control["<s>"])
    writer.add_eos_token_id(vocab.control["</s>"])
    writer.add_eot_token_id(vocab.control[CONTROL[-1]])
    writer.add_unk_token_id(vocab.sp.unk_id())
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    writer.add_chat_template(TEMPLATE)


def quantize(source: Path, out: Path, kind: str) -> None:
    """Write `out` with fewer bits, by llama.cpp's own routine; `kind` is one of TYPES.

    K-quants need rows of a multiple of 256 numbers; llama.cpp takes a type of its own choice for a
    matrix that has others.
    """
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = TYPES[kind]
    settings.nthread = 1
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), settings):
        raise SystemExit(f"{source} could not be written as {kind}")
