"""A model's vocabulary out of llama.cpp: every token's bytes, kinds and ends, none lost."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

from capt_local.engine.library import Library
from capt_local.errors import ModelError
from capt_local.vocab.vocabulary import TokenKind, Vocabulary

# llama.cpp's bit of each kind; the bits above them tell how a marker treats white space.
_KIND_BITS = {
    1 << 0: TokenKind.UNKNOWN,
    1 << 1: TokenKind.UNUSED,
    1 << 2: TokenKind.NORMAL,
    1 << 3: TokenKind.CONTROL,
    1 << 4: TokenKind.USER_DEFINED,
    1 << 5: TokenKind.BYTE,
}
_KIND_MASK = (1 << 6) - 1


def read_vocabulary(library: Library, vocab: int, name: str) -> Vocabulary:
    """The vocabulary behind a `llama_vocab` address.

    Args:
        library: llama.cpp.
        vocab: address of the model's vocabulary.
        name: of the file, for errors.

    Raises:
        ModelError: the file has no vocabulary, or llama.cpp cannot spell one of its tokens.
    """
    api = library.api
    count = api.llama_vocab_n_tokens(vocab)
    if count < 1 or api.llama_vocab_type(vocab) == api.LLAMA_VOCAB_TYPE_NONE:
        raise ModelError(f"{name} has no vocabulary, so it cannot read or write text.")
    handle = ctypes.c_void_p(vocab)
    address, number = ctypes.c_void_p, ctypes.c_int32
    attributes = library.function("llama_vocab_get_attr", ctypes.c_int, address, number)
    is_end = library.function("llama_vocab_is_eog", ctypes.c_bool, address, number)
    bos = api.llama_vocab_bos(vocab)
    return Vocabulary(
        _pieces(library, handle, count, name),
        np.fromiter((_kind(attributes(handle, token)) for token in range(count)), np.uint8, count),
        end_ids=(token for token in range(count) if is_end(handle, token)),
        bos=bos if bos >= 0 else None,
        add_bos=bool(api.llama_vocab_get_add_bos(vocab)),
    )


def _kind(attributes: int) -> TokenKind:
    return _KIND_BITS.get(attributes & _KIND_MASK, TokenKind.UNDEFINED)


def _pieces(library: Library, vocab: ctypes.c_void_p, count: int, name: str) -> list[bytes]:
    number = ctypes.c_int32
    spell: Callable[..., int] = library.function(
        "llama_token_to_piece",
        number, ctypes.c_void_p, number, ctypes.c_char_p, number, number, ctypes.c_bool,
    )  # fmt: skip
    size = 64
    buffer = ctypes.create_string_buffer(size)
    pieces = []
    for token in range(count):
        length = spell(vocab, token, buffer, size, 0, True)
        if length < 0:  # the buffer is too short; the size needed comes back as a negative number
            size = -length
            buffer = ctypes.create_string_buffer(size)
            length = spell(vocab, token, buffer, size, 0, True)
        if length < 0:
            raise ModelError(f"{name}: llama.cpp cannot spell token {token} of the vocabulary.")
        pieces.append(buffer.raw[:length])
    return pieces
