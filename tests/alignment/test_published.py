"""Strings and first sub-tokens as the published code has them, defects included."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.decoding.baselines import TokenStrings
from tests.published_toys import lettered, spaced
from tests.real_vocabularies import open_vocabulary


def test_else_the_first_sub_token() -> None:
    """A word mark that is a piece of its own is passed over; a merged one stays."""
    toy = spaced(" ", "card", " os", "is", " /", " <")
    assert toy.strings.piece("cardosis") == toy.id("card")
    assert toy.strings.piece("Ġcardosis") == toy.id("card")
    assert toy.strings.piece("osis") == toy.id(" os")
    assert toy.strings.piece("/n") == toy.id(" /")
    assert toy.strings.piece("<|end|>") == toy.id(" <")
    toy = lettered("card", "card")  # of equals the lowest
    assert toy.strings.piece("cardosis") == toy.id("card")
    assert toy.strings.piece("card") == toy.id("card") - 1


def test_a_letter_for_a_space_reaches_a_byte_level_tokenizer_as_a_letter() -> None:
    """ "Ġ" is C4 A0: what is looked for is the text "Ġcardosis", not " cardosis"."""
    assert lettered(" card").strings.piece("Ġcardosis") == 2 + 0xC4


@given(st.lists(st.text("abc d", min_size=1, max_size=4), min_size=1, max_size=8, unique=True))
def test_one_vocabulary_maps_every_word_to_itself(words: list[str]) -> None:
    long = [one for one in words if len(one) > 1]
    for toy, own in ((spaced(*words), words), (lettered(*long), long)):
        for word in own:
            assert toy.strings.piece(toy.strings.key(toy.id(word))) == toy.id(word)


@cache
def real(name: str) -> TokenStrings:
    weights = open_vocabulary(name)
    return TokenStrings(weights.vocabulary, weights.tokenize)


def mapped(target: str, expert: str, piece: bytes) -> bytes:
    """The piece of the expert for a token of the target that has these bytes."""
    token = open_vocabulary(target).vocabulary.pieces().index(piece)
    return open_vocabulary(expert).vocabulary.piece(real(expert).piece(real(target).key(token)))


@pytest.mark.parametrize(
    ("token", "piece"),
    [
        # Right.
        (" the", " the"),
        ("card", "card"),
        ("5", "5"),
        ("  ", "  "),
        # A word's first piece stands for the whole word.
        (" cardi", " card"),
        # A newline is "/", with a space in front.
        ("\n", " /"),
        ("\n\n", " /"),
        (".\n", " ./"),
        # The middle of a word gets a leading space.
        ("doctor", " doctor"),
        ("-year", " -"),
        # The end of the answer is a space and "<".
        ("<|im_end|>", " <"),
        ("<|endoftext|>", " <"),
        # Units, Greek letters and dashes are the letters that byte-level BPE writes for their
        # first byte.
        ("µ", "Â"),
        ("°", "Â"),
        ("α", " Î"),
        (" –", " â"),
    ],
)
def test_what_qwen_tokens_become_for_llama_2(token: str, piece: str) -> None:
    assert mapped("qwen2", "llama-spm", token.encode()) == piece.encode()


def test_one_piece_stands_for_thousands_of_tokens() -> None:
    """They all get one contrast, so the expert cannot tell them apart. All of it in seconds."""
    target, expert = real("qwen2"), real("llama-spm")
    pieces = [expert.piece(target.key(t)) for t in range(len(open_vocabulary("qwen2").vocabulary))]
    counts = np.bincount(pieces)
    assert counts.max() == 7059
    assert open_vocabulary("llama-spm").vocabulary.piece(int(counts.argmax())) == " å".encode()


def test_what_llama_2_tokens_become_for_qwen() -> None:
    """Also the other way, which UniTE needs: "/n" is a token of Qwen, and is what comes out."""
    assert mapped("llama-spm", "qwen2", b"\n") == b"/n"
    assert mapped("llama-spm", "qwen2", b" the") == b" the"
    assert real("qwen2").piece("<0xE2>") == real("qwen2").piece("<")
    # A word of Llama-2 that Qwen has not got: Qwen would write the letter of the space.
    assert open_vocabulary("qwen2").vocabulary.piece(real("qwen2").piece("Ġpartiellement")) == (
        "Ġ".encode()
    )


@pytest.mark.parametrize("name", ["qwen2", "llama-spm"])
def test_real_vocabularies_are_spelt_without_loss(name: str) -> None:
    """Every string is found again, under the id of the first token that has it."""
    strings = real(name)
    assert strings.spaced == (name != "qwen2")
    for token in range(1, 3000):
        key = strings.key(token)
        if "/n" not in key:
            assert strings.key(strings.piece(key)) == key
