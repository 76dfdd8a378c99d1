"""A model's vocabulary out of llama.cpp: every token's bytes, kinds and ends, none lost."""

from __future__ import annotations

import ctypes
from itertools import repeat

import numpy as np

from capt_local.engine.library import Library
from capt_local.errors import ModelError
from capt_local.vocab.vocabulary import TokenKind, Vocabulary

# llama.cpp's bit of each kind, the strongest first: a token that it finds to be a marker keeps the
# kind that the file gave it beside CONTROL. Bits above these tell how a marker treats white space.
_KIND_BITS = (
    (1 << 3, TokenKind.CONTROL),
    (1 << 4, TokenKind.USER_DEFINED),
    (1 << 5, TokenKind.BYTE),
    (1 << 0, TokenKind.UNKNOWN),
    (1 << 1, TokenKind.UNUSED),
    (1 << 2, TokenKind.NORMAL),
)
_KIND_MASK = (1 << 6) - 1
_KINDS = np.array(
    [
        next((kind for bit, kind in _KIND_BITS if bits & bit), TokenKind.UNDEFINED)
        for bits in range(_KIND_MASK + 1)
    ],
    np.uint8,
)
_SLOT = 64  # bytes; a few hundred tokens of a vocabulary are longer


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
    everywhere, tokens = repeat(handle), range(count)
    bits = np.fromiter(map(attributes, everywhere, tokens), np.int32, count) & _KIND_MASK
    ends = np.fromiter(map(is_end, everywhere, tokens), np.bool_, count)
    bos = api.llama_vocab_bos(vocab)
    eos = api.llama_vocab_eos(vocab)
    return Vocabulary(
        _pieces(library, handle, count, name),
        _KINDS[bits],
        end_ids=np.flatnonzero(ends).tolist(),
        bos=bos if bos >= 0 else None,
        add_bos=bool(api.llama_vocab_get_add_bos(vocab)),
        eos=eos if eos >= 0 else None,
    )


def _pieces(library: Library, vocab: ctypes.c_void_p, count: int, name: str) -> list[bytes]:
    """The bytes of all tokens, spelt into slots of one buffer; long ones once more on their own."""
    number, address = ctypes.c_int32, ctypes.c_void_p
    spell = library.function(
        "llama_token_to_piece", number, address, number, address, number, number, ctypes.c_bool
    )
    slots = ctypes.create_string_buffer(_SLOT * count)
    first = ctypes.addressof(slots)
    places = range(first, first + _SLOT * count, _SLOT)
    same = (repeat(_SLOT), repeat(0), repeat(True))
    lengths = list(map(spell, repeat(vocab), range(count), places, *same))
    raw = slots.raw
    pieces = [
        raw[at : at + size] for at, size in zip(range(0, len(raw), _SLOT), lengths, strict=True)
    ]
    for token in np.flatnonzero(np.array(lengths) < 0).tolist():
        size = -lengths[token]  # a slot was too short; this is the size needed
        buffer = ctypes.create_string_buffer(size)
        if spell(vocab, token, ctypes.addressof(buffer), size, 0, True) != size:
            raise ModelError(f"{name}: llama.cpp cannot spell token {token} of the vocabulary.")
        pieces[token] = buffer.raw
    return pieces
