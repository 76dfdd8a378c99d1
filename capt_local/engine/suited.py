"""Whether a model is of a kind that can be followed token by token."""

from __future__ import annotations

import ctypes

from capt_local.engine.library import Library
from capt_local.errors import ModelError


def refuse_other_kinds(
    library: Library, handle: int | None, vocab: ctypes.c_void_p, name: str, architecture: str
) -> None:
    """Refuses models that do not write from left to right, or that read other text than is there.

    Args:
        library: llama.cpp.
        handle: of the model.
        vocab: of its vocabulary.
        name: of its file.
        architecture: of the model.

    Raises:
        ModelError: it is such a model.
    """
    api = library.api
    if (
        not api.llama_model_has_decoder(handle)
        or api.llama_model_has_encoder(handle)
        or api.llama_model_is_diffusion(handle)
    ):
        raise ModelError(
            f"{name} ({architecture}) does not write text from left to right. "
            "Use a decoder-only language model."
        )
    if api.llama_vocab_type(vocab) in (api.LLAMA_VOCAB_TYPE_WPM, api.LLAMA_VOCAB_TYPE_UGM):
        raise ModelError(
            f"{name}: its tokenizer rewrites the text (lower case, white space), so what it "
            "reads is not what was written. Use a model with byte-level BPE or SentencePiece."
        )
