"""Text as tokens on tiny vocabularies: what llama.cpp alone would get wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capt_local.llama.weights import Weights
from capt_local.tokenization.tokenizer import TextTokenizer
from tests.tiny_vocabularies import MARKERS, TEXT, USER_DEFINED, Flavour

BYTES = st.lists(
    st.one_of(
        st.binary(max_size=4),
        st.sampled_from([*MARKERS, USER_DEFINED, "▁", " ", "\n", "the patient"]).map(str.encode),
    ),
    max_size=10,
).map(b"".join)


@pytest.fixture(params=["bpe", "spm"])
def tokenizer(request: pytest.FixtureRequest, tiny_path: Callable[..., Path]) -> TextTokenizer:
    flavour: Flavour = request.param
    weights = Weights(tiny_path(flavour), vocabulary_only=True)
    request.addfinalizer(weights.close)
    return TextTokenizer(weights.vocabulary, weights.tokenize)


def written(tokenizer: TextTokenizer, tokens: list[int]) -> bytes:
    return b"".join(map(tokenizer.vocabulary.piece, tokens))


def test_llama_cpp_alone_loses_text_around_a_user_defined_token(
    tiny_path: Callable[..., Path],
) -> None:
    text = f"a{USER_DEFINED}b ▁c".encode()
    with Weights(tiny_path("spm"), vocabulary_only=True) as weights:
        tokens = weights.tokenize(text, special=False)
        assert b"".join(map(weights.vocabulary.piece, tokens)) != b" " + text
        tokenizer = TextTokenizer(weights.vocabulary, weights.tokenize)
        assert written(tokenizer, tokenizer.encode(text, start=True)) == b" " + text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=BYTES, start=st.booleans())
def test_any_bytes_are_kept_and_no_marker_comes_out(
    tokenizer: TextTokenizer, text: bytes, start: bool
) -> None:
    tokens = tokenizer.encode(text, start=start)
    assert written(tokenizer, tokens) == (tokenizer.lead if start and text else b"") + text
    names = {tokenizer.vocabulary.piece(token) for token in tokens}
    assert not names & {name.encode() for name in (*MARKERS, USER_DEFINED)}


def test_text_that_goes_on_gets_no_second_space(tokenizer: TextTokenizer) -> None:
    first, rest = TEXT[:40].encode(), TEXT[40:].encode()
    tokens = tokenizer.encode(first, start=True) + tokenizer.encode(rest, start=False)
    assert written(tokenizer, tokens) == tokenizer.lead + TEXT.encode()
    assert written(tokenizer, list(tokenizer.lead_tokens)) == tokenizer.lead


def test_scaffolding_does_become_markers(tokenizer: TextTokenizer) -> None:
    tokens = tokenizer.scaffold(MARKERS[0].encode() + b"user\n", start=True)
    assert tokenizer.vocabulary.piece(tokens[0]) == MARKERS[0].encode()
