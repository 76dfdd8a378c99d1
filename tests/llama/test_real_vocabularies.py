"""The vocabularies of real models: no byte lost, llama.cpp's own cases, no marker out of text."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.errors import ModelError
from capt_local.llama.weights import Weights
from capt_local.tokenization import TextTokenizer, TokenKind
from tests.real_vocabularies import NAMES, REFUSED, open_vocabulary, vocabulary_path

SPACES = [" ", "  ", "\n", "\n\n", "\t", " \n", "\u00a0", "\u3000"]
WORDS = ["word", " Word", "123", "4567", ".", "...", "'s", "é", " mg/dL", "-", "x = y", "| a |"]
ODD = ["\u2581", "<|im_end|>", "</s>", "\U0001f3e5"]
PIECES = st.one_of(st.text(max_size=12), st.sampled_from(SPACES + WORDS + ODD))
TEXTS = st.lists(PIECES, max_size=12).map(lambda parts: "".join(parts).encode())


@pytest.fixture(params=NAMES)
def weights(request: pytest.FixtureRequest) -> Weights:
    return open_vocabulary(request.param)


@cache
def text_tokenizer(name: str) -> TextTokenizer:
    opened = open_vocabulary(name)
    return TextTokenizer(opened.vocabulary, opened.tokenize)


@pytest.fixture(params=NAMES)
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    return text_tokenizer(request.param)


def written(tokenizer: TextTokenizer, tokens: list[int]) -> bytes:
    return b"".join(map(tokenizer.vocabulary.piece, tokens))


def spellable(tokenizer: TextTokenizer, text: bytes) -> bool:
    """Whether the vocabulary has all bytes of the text; Falcon lacks some control characters."""
    return set(text) <= set(tokenizer.vocabulary.byte_ids)


def test_no_token_is_without_its_bytes(weights: Weights) -> None:
    vocabulary = weights.vocabulary
    # What is not CONTROL or UNUSED stands for bytes; some vocabularies have hundreds over 32.
    empty = np.flatnonzero(vocabulary.lengths == 0)
    assert set(vocabulary.kinds[empty].tolist()) <= {TokenKind.UNUSED, TokenKind.CONTROL}
    assert len(empty) < 300
    byte_tokens = np.flatnonzero(vocabulary.kinds == TokenKind.BYTE)
    assert all(len(vocabulary.piece(token)) == 1 for token in byte_tokens.tolist())
    assert len(byte_tokens) in (0, 256)
    assert not vocabulary.is_text[vocabulary.end_ids].any()
    assert len(vocabulary.end_ids) >= 1
    assert len(weights.vocabulary.byte_ids) >= 228


@pytest.mark.parametrize(
    ("name", "long_pieces"), [("qwen2", 240), ("llama-bpe", 231), ("gemma-4", 379)]
)
def test_pieces_over_32_bytes_are_whole(name: str, long_pieces: int) -> None:
    vocabulary = open_vocabulary(name).vocabulary
    assert int(((vocabulary.lengths > 32) & vocabulary.is_text).sum()) == long_pieces
    longest = vocabulary.piece(int((vocabulary.lengths * vocabulary.is_text).argmax()))
    assert longest in open_vocabulary(name).vocabulary.text(
        open_vocabulary(name).tokenize(longest, special=False)
    )


def test_llama_cpps_own_cases(weights: Weights) -> None:
    inputs = vocabulary_path(weights.metadata.name[len("ggml-vocab-") : -len(".gguf")])
    cases = inputs.with_name(inputs.name + ".inp")
    if not cases.exists():
        assert weights.metadata.name in (
            "ggml-vocab-aquila.gguf", "ggml-vocab-baichuan.gguf", "ggml-vocab-gpt-neox.gguf"
        )  # fmt: skip
        return
    texts = cases.read_bytes().decode().split("\n__ggml_vocab_test__\n")
    answers = cases.with_suffix(".out").read_text().splitlines()
    assert len(texts) > 40
    for text, answer in zip(texts, answers, strict=False):
        found = weights.tokenize(text.encode(), special=False)
        assert found == [int(token) for token in answer.split()], repr(text)


def markers(tokenizer: TextTokenizer) -> list[int]:
    """Every token that text must not turn into; a sample where there are thousands."""
    vocabulary = tokenizer.vocabulary
    kinds = np.isin(vocabulary.kinds, (TokenKind.CONTROL, TokenKind.USER_DEFINED))
    candidates = np.flatnonzero(kinds | vocabulary.is_end).tolist()
    found = [token for token in candidates if not is_plain(vocabulary.piece(token))]
    return found[:: max(1, len(found) // 60)]


def is_plain(piece: bytes) -> bool:
    """White space and single characters are no markers, whatever their kind."""
    return piece.isspace() or len(piece.decode("utf-8", "replace")) == 1


def test_markers_typed_into_a_note_stay_text(tokenizer: TextTokenizer) -> None:
    vocabulary = tokenizer.vocabulary
    forbidden = np.zeros(len(vocabulary), np.bool_)
    found = markers(tokenizer)
    assert found
    for token in np.flatnonzero(vocabulary.kinds == TokenKind.CONTROL).tolist():
        forbidden[token] = True
    forbidden[vocabulary.end_ids] = True
    forbidden[found] = True
    every = b"".join(b"a " + vocabulary.piece(token) + b"\n b" for token in found)
    single = [vocabulary.piece(token) for token in found[:20]]
    for text in (every, *single, *(b"x" + one + one + b" \n" for one in single)):
        for start in (True, False):
            tokens = tokenizer.encode(text, start=start)
            assert written(tokenizer, tokens) == (tokenizer.leading_space if start else b"") + text
            assert not forbidden[tokens].any()


@settings(max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("name", NAMES)
def test_any_text_keeps_its_bytes_and_can_be_cut(name: str, data: st.DataObject) -> None:
    tokenizer = text_tokenizer(name)
    text = data.draw(TEXTS)
    if not spellable(tokenizer, text):
        return
    whole = tokenizer.encode(text, start=True)
    leading_space = tokenizer.leading_space if text else b""
    assert written(tokenizer, whole) == leading_space + text
    cut = tokenizer.last_cut(text)
    assert 0 <= cut <= len(text)
    if cut:
        left = tokenizer.encode(text[:cut], start=True)
        assert left + tokenizer.encode(text[cut:], start=False) == whole


@pytest.mark.parametrize("name", REFUSED)
def test_tokenizers_that_rewrite_text_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"rewrites the text|left to right"):
        Weights(vocabulary_path(name), vocabulary_only=True)
