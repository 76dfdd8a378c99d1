"""From checkpoints to GGUF files that llama.cpp reads as `llama` models.

The trained RoPE is llama.cpp's own (neighbouring pairs), so weights are written as they are.
There is no `output.weight`: llama.cpp then uses the token embedding as head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from numpy.typing import NDArray

from scripts.train_demo_trio.model import Llama
from scripts.train_demo_trio.train import checkpoint, load_model
from scripts.train_demo_trio.vocab import (
    PROXY_CONTROL,
    PROXY_TEMPLATE,
    TARGET_CONTROL,
    TARGET_TEMPLATE,
    ProxyVocab,
    TargetVocab,
    open_vocab,
)

_FILE_TYPES = {
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
}
_ABOUT = {
    "target": "A small general language model: the target of the capt-local demo trio.",
    "base": "A small general language model: the expert's parent in the capt-local demo trio.",
    "expert": "The demo base trained on with clinical text: the expert of the demo trio.",
}


def _add_header(writer: GGUFWriter, role: str, model: Llama, kind: str) -> None:
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
    writer.add_file_type(_FILE_TYPES[kind][1])


def _add_target_vocab(writer: GGUFWriter, vocab: TargetVocab) -> None:
    merges = json.loads(vocab.path.read_text("utf-8"))["model"]["merges"]
    known = set(TARGET_CONTROL)
    pieces = [vocab.hf.id_to_token(i) for i in range(vocab.size)]
    types = [TokenType.CONTROL if p in known else TokenType.NORMAL for p in pieces]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(vocab.control["<|endoftext|>"])
    writer.add_eos_token_id(vocab.control["<|im_end|>"])
    writer.add_eot_token_id(vocab.control["<|im_end|>"])
    writer.add_pad_token_id(vocab.control["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(TARGET_TEMPLATE)


def _proxy_type(vocab: ProxyVocab, i: int) -> TokenType:
    if vocab.sp.is_unknown(i):
        return TokenType.UNKNOWN
    if vocab.sp.is_control(i):
        return TokenType.CONTROL
    return TokenType.BYTE if vocab.sp.is_byte(i) else TokenType.NORMAL


def _add_proxy_vocab(writer: GGUFWriter, vocab: ProxyVocab) -> None:
    ids = range(vocab.size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([vocab.sp.id_to_piece(i).encode() for i in ids])
    writer.add_token_scores([vocab.sp.get_score(i) for i in ids])
    writer.add_token_types([_proxy_type(vocab, i) for i in ids])
    writer.add_bos_token_id(vocab.control["<s>"])
    writer.add_eos_token_id(vocab.control["</s>"])
    writer.add_eot_token_id(vocab.control[PROXY_CONTROL[-1]])
    writer.add_unk_token_id(vocab.sp.unk_id())
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    writer.add_chat_template(PROXY_TEMPLATE)


def _add_tensors(writer: GGUFWriter, model: Llama, kind: str) -> None:
    wanted = _FILE_TYPES[kind][0]
    for name, tensor in model.state_dict().items():
        values: NDArray[np.float32] = tensor.float().numpy()
        if values.ndim == 1:
            writer.add_tensor(f"{name}.weight", values)
        else:
            packed = gguf.quants.quantize(values, wanted)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=wanted)


def export(checkpoint: Path, vocab: TargetVocab | ProxyVocab, role: str, out: Path,
           kind: str = "f16") -> None:  # fmt: skip
    """Write one model with its vocabulary and chat template."""
    model = load_model(checkpoint)
    writer = GGUFWriter(out, "llama")
    _add_header(writer, role, model, kind)
    if isinstance(vocab, TargetVocab):
        _add_target_vocab(writer, vocab)
    else:
        _add_proxy_vocab(writer, vocab)
    _add_tensors(writer, model, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def export_trio(work: Path, out: Path, stages: Mapping[str, str], kind: str = "f16") -> None:
    """Write OUT/{target,expert,base}.gguf from the checkpoints of these stages."""
    out.mkdir(parents=True, exist_ok=True)
    for role, stage in stages.items():
        vocab = open_vocab("target" if role == "target" else "proxy", work)
        path = out / f"{role}.gguf"
        export(checkpoint(work, stage), vocab, role, path, kind)
        print(f"{path}: {stage}, {path.stat().st_size / 1e6:.1f} MB")
