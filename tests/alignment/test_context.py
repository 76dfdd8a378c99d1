"""The kept tokens are those of the whole text, however it grows."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.alignment import CanonicalContext
from capt_local.tokenization import TextTokenizer
from tests.fakes import greedy_tokenizer, make_vocabulary

VOCABULARY = make_vocabulary(["card", "cardiac", "iac", " the", " card", "  ", "\n\n", "é", " a"])
PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            [b"card", b"iac", b" ", b"the", b"\n", b"\xc3", b"\xa9", b" a", b"d the a"]
        ),
        st.binary(min_size=1, max_size=3),
    ),
    max_size=25,
)


def tokenizer(leading_space: bytes) -> TextTokenizer:
    return TextTokenizer(VOCABULARY, greedy_tokenizer(VOCABULARY, leading_space=leading_space))


@settings(deadline=None, max_examples=200)
@given(PIECES, st.sampled_from([b"", b" "]), st.booleans())
def test_growing_is_tokenizing_anew(pieces: list[bytes], leading_space: bytes, start: bool) -> None:
    tokens = tokenizer(leading_space)
    context = CanonicalContext(tokens, [0, 5], start=start)
    seen: list[int] = list(context.tokens)
    for piece in pieces:
        kept = context.append(piece)
        assert context.tokens[:kept] == seen[:kept]
        seen = list(context.tokens)
        if context.text:
            assert seen == [0, 5, *tokens.encode(context.text, start=start)]


def test_a_leading_space_waits_for_the_first_word() -> None:
    context = CanonicalContext(tokenizer(b" "), [0], start=True)
    assert context.rests(1) == [b" "]
    context.append(b"card")
    assert context.rests(1) == [b" card"]


def test_a_word_behind_a_safe_cut_is_tokenized_alone() -> None:
    asked: list[bytes] = []
    plain = greedy_tokenizer(VOCABULARY)

    def tokenize(text: bytes, *, special: bool) -> list[int]:
        asked.append(text)
        return plain(text, special=special)

    context = CanonicalContext(TextTokenizer(VOCABULARY, tokenize), [0], b"card", start=True)
    asked.clear()
    assert context.append(b" cardiac") == 2
    assert asked == [b" cardiac"]
    assert context.append(b" a") == len(context.tokens) - 1
    assert context.rests(2) == [b" a", b"iac a"]
