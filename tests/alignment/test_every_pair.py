"""Every ordered pair of real vocabularies: tables build, no bytes are lost, rows sum to 1.

Among them are vocabularies without a token for some bytes (SmolLM2, Falcon, GPT-NeoX), with pieces
that repeat (Llama-2, Gemma), of 262,144 pieces, with and without a space in front.
"""

from __future__ import annotations

from functools import cache
from itertools import chain

import numpy as np
import pytest

from capt_local.alignment import (
    DEPTH,
    NO_EVENT,
    CanonicalContext,
    EarlierRow,
    Projection,
    TargetEvents,
)
from capt_local.llama.weights import Weights
from capt_local.tokenization import TextTokenizer
from tests import real_models
from tests.real_vocabularies import NAMES, open_vocabulary

MODELS = {
    "smollm2": real_models.smollm2,
    "gemma-3": real_models.gemma,
    "demo": lambda: real_models.demo_proxy("expert"),
}
ALL = (*MODELS, *NAMES)
FAST = [
    ("smollm2", "demo"),
    ("smollm2", "smollm2"),
    ("falcon", "phi-3"),
    ("demo", "gpt-neox"),
]
ODD = (
    "Pt. c/o pain\r\n\tT 38,5 \u00b0C \u2013 \u00b5g \u2265 \U0001fac0\U0001f3e5 \u60a3\u8005\u80f8"
    "\u75db\uff0c\u4e09\u5929\u3002 e\u0301 \u200b\ufeff\u00a0x \u2581y <|im_end|></s> it's "
).encode() + bytes(range(32))
NO_SPACE = ("\u80f8\u75db\u4e09\u5929" * 150 + "ab\u00e9_1-" * 150 + "x" * 800).encode()
NOTE = ODD + NO_SPACE + b"\n\n  the end.  "


@cache
def opened(name: str) -> Weights:
    return real_models.open_tokenizer(MODELS[name]()) if name in MODELS else open_vocabulary(name)


@cache
def tokenizer(name: str) -> TextTokenizer:
    return TextTokenizer(opened(name).vocabulary, opened(name).tokenize)


def text_of(name: str, tokens: list[int], *, start: bool) -> bytes:
    leading_space = tokenizer(name).leading_space if start else b""
    return b"".join(map(tokenizer(name).vocabulary.piece, tokens)).removeprefix(leading_space)


def unspellable(name: str) -> set[int]:
    """Control characters that a vocabulary has no token for."""
    return {byte for byte in range(32) if byte not in tokenizer(name).vocabulary.byte_ids}


def check_pair(target: str, proxy: str) -> None:
    own, other = tokenizer(target), tokenizer(proxy)
    events = TargetEvents(own)
    made = Projection(other.vocabulary, events)
    rng = np.random.default_rng(0)
    everything = np.arange(len(own.vocabulary), dtype=np.int32)
    prior = rng.dirichlet(np.full(len(everything), 0.1)) + 1e-30
    asked = made.query(everything, prior)
    # What the proxy can say in tokens of the target: control tokens and foreign bytes aside.
    counted = other.vocabulary.is_end.copy()
    for token in np.flatnonzero(other.vocabulary.is_text).tolist():
        counted[token] = events.first(other.vocabulary.piece(token)) != NO_EVENT
    row = np.where(counted, rng.dirichlet(np.full(len(counted), 0.1)), 0.0)
    row = (row / row.sum()).astype(np.float32)
    got = made.probability(asked, row)
    assert np.isfinite(got).all() and got.min() >= 0.0
    assert got.sum() == pytest.approx(1.0, abs=1e-4)
    lost = np.flatnonzero(other.vocabulary.is_text & ~counted).tolist()
    assert all(other.vocabulary.piece(token)[0] not in own.vocabulary.byte_ids for token in lost)
    # The proxy follows a note in the target's tokens.
    context, longer = CanonicalContext(other, [], start=True), 0
    known, _whole = own.encode_known(NOTE, start=True)
    for number, token in enumerate(known):
        piece = own.vocabulary.piece(token)
        context.append(piece if number else piece.removeprefix(own.leading_space))
        behind = context.rests(DEPTH)
        if number % 120 == 0:
            last = context.tokens[::-1][: len(behind)]
            back = [EarlierRow(row, each, rest) for each, rest in zip(last, behind, strict=True)]
            healed = made.probability(asked, row, back)
            assert np.isfinite(healed).all() and healed.min() >= 0.0
            assert healed.sum() == pytest.approx(1.0, abs=1e-3) or lost
            longer += len(back)
    assert longer
    seen = text_of(target, known, start=True)
    assert seen == NOTE.translate(None, bytes(unspellable(target)))
    missing = bytes(unspellable(proxy))
    assert text_of(proxy, context.tokens, start=True) == seen.translate(None, missing)
    assert context.unseen == any(byte in seen for byte in missing)


@pytest.mark.parametrize(("target", "proxy"), FAST)
def test_a_pair(target: str, proxy: str) -> None:
    check_pair(target, proxy)


@pytest.mark.slow
@pytest.mark.parametrize("target", ALL)
def test_a_target_with_every_proxy(target: str) -> None:
    for proxy in ALL:
        check_pair(target, proxy)


@pytest.mark.parametrize(
    "name",
    [name if name in chain(*FAST) else pytest.param(name, marks=pytest.mark.slow) for name in ALL],
)
def test_an_odd_note_keeps_its_bytes(name: str) -> None:
    """20,000 characters without a space among control bytes, CRLF, tabs, emoji and Chinese."""
    text = ODD + NO_SPACE * 9 + ODD
    tokens, whole = tokenizer(name).encode_known(text, start=True)
    missing = unspellable(name)
    assert text_of(name, tokens, start=True) == text.translate(None, bytes(missing))
    assert whole == (not missing)


@pytest.mark.parametrize(("name", "other"), [("demo", "qwen2")])
def test_following_a_text_without_spaces_is_not_quadratic(name: str, other: str) -> None:
    """4,600 characters token by token: the tail that is tokenized again stays short."""
    context, longest = CanonicalContext(tokenizer(name), [], start=True), 0
    text = NO_SPACE * 2
    tokens = tokenizer(other).encode(text, start=True)
    for token in tokens:
        context.append(tokenizer(other).vocabulary.piece(token))
        longest = max(longest, len(context.text) - context._cut)
    assert context.text == text == text_of(name, context.tokens, start=True)
    assert longest < 1500


SHORT = (
    "\n\nBP 142/88 mmHg, SpO\u2082 91 % on room air, T 38.5 \u00b0C. Troponin < 0.04 ng/mL; "
    "\u03b1-blocker held \u2013 metoprolol 25 mg b.i.d. for acute cardiomyopathy \U0001fac0."
).encode()


def sure_of(proxy: str, token: int) -> np.ndarray:
    """A row that is certain of one piece."""
    row = np.zeros(len(tokenizer(proxy).vocabulary), dtype=np.float32)
    row[token] = 1.0
    return row


@pytest.mark.parametrize(("target", "proxy"), [("qwen2", "llama-spm"), ("llama-spm", "qwen2")])
def test_a_proxy_that_knows_what_comes_gives_its_token_the_credit(target: str, proxy: str) -> None:
    """Certain of the right next piece, and of the right last ones, along a note."""
    own, other = tokenizer(target), tokenizer(proxy)
    made = Projection(other.vocabulary, TargetEvents(own))
    context, seen = CanonicalContext(other, [], start=True), 0
    whole = other.encode(SHORT, start=True)
    everything = np.arange(len(own.vocabulary), dtype=np.int32)
    for number, token in enumerate(own.encode(SHORT, start=True)):
        piece, place = own.vocabulary.piece(token), len(context.tokens)
        text = piece if context.text else piece.removeprefix(own.leading_space)
        boundary = context.tokens == whole[:place] and place < len(whole)
        if boundary and context.text and number % 3 == 0:
            behind = context.rests(DEPTH)
            last = context.tokens[::-1][: len(behind)]
            back = [
                EarlierRow(sure_of(proxy, each), each, rest)
                for each, rest in zip(last, behind, strict=True)
            ]
            prior = np.full(len(everything), 1e-9)
            prior[token] = 1.0
            shown = sure_of(proxy, whole[place]), back
            got = made.probability(made.query(everything, prior), *shown)
            begins = text.startswith(other.vocabulary.piece(whole[place]))
            assert got[token] > 0.99 or not begins
            assert got.sum() == pytest.approx(1.0)
            seen += got[token] > 0.99
        context.append(text)
    assert context.tokens == whole and seen > 5


@pytest.mark.parametrize("name", ["qwen2", "llama-spm", "gemma-4"])
def test_contexts_grow_by_any_bytes_as_the_whole_text(name: str) -> None:
    """Also inside a character."""
    context, at = CanonicalContext(tokenizer(name), [], start=True), 0
    rng = np.random.default_rng(0)
    while at < len(SHORT):
        size = int(rng.integers(1, 6))
        context.append(SHORT[at : at + size])
        at += size
    assert context.tokens == tokenizer(name).encode(SHORT, start=True)
