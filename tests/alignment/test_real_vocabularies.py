"""Alignment between the vocabularies of real models: Qwen2 and Llama-3 onto Llama-2 and back."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from capt_local.alignment.context import CanonicalContext
from capt_local.alignment.projection import DEPTH, Back, Projection, TargetEvents, View
from capt_local.tokenization.tokenizer import TextTokenizer
from tests.real_vocabularies import open_vocabulary

NOTE = (
    "Pt is a 58-year-old woman with dyspnea on exertion x 3 days.\n\nVitals: BP 142/88 mmHg, "
    "SpO\u2082 91 % on room air, T 38.5 \u00b0C. Troponin < 0.04 ng/mL; \u03b1-blocker held \u2013 "
    "metoprolol 25 mg b.i.d. continued.\nAssessment: acute decompensated cardiomyopathy \U0001fac0."
)
PAIRS = [("qwen2", "llama-spm"), ("llama-bpe", "llama-spm"), ("llama-spm", "qwen2")]


@cache
def tokenizer(name: str) -> TextTokenizer:
    weights = open_vocabulary(name)
    return TextTokenizer(weights.vocabulary, weights.tokenize)


def sure_of(proxy: str, token: int) -> np.ndarray:
    """A row that is certain of one piece."""
    row = np.zeros(len(tokenizer(proxy).vocabulary), dtype=np.float32)
    row[token] = 1.0
    return row


@pytest.mark.parametrize(("target", "proxy"), PAIRS)
def test_a_proxy_that_knows_what_comes_gives_its_token_the_credit(target: str, proxy: str) -> None:
    """Walk a note in the target's tokens: a proxy that is certain of the right next piece, and was
    certain of the right last ones, gives all to a target that expects the token, too."""
    made = Projection(tokenizer(proxy).vocabulary, TargetEvents(tokenizer(target)))
    own, other = tokenizer(target), tokenizer(proxy)
    context = CanonicalContext(other, [], start=True)
    whole = other.encode(NOTE.encode(), start=True)
    everything = np.arange(len(own.vocabulary), dtype=np.int32)
    seen = 0
    for token in own.encode(NOTE.encode(), start=True):
        piece = own.vocabulary.piece(token)
        place = len(context.tokens)
        boundary = context.tokens == whole[:place] and place < len(whole)
        text = piece if context.text else piece.removeprefix(own.lead)
        if boundary and place and context.text:
            behind = context.rests(DEPTH)
            last = context.tokens[::-1][: len(behind)]
            back = [
                Back(sure_of(proxy, token), token, rest)
                for token, rest in zip(last, behind, strict=True)
            ]
            prior = np.full(len(everything), 1e-9)
            prior[token] = 1.0
            got = made.probability(
                made.query(everything, prior), View(sure_of(proxy, whole[place]), back)
            )
            begins = text.startswith(other.vocabulary.piece(whole[place]))
            assert got[token] > 0.99 or not begins
            assert got.sum() == pytest.approx(1.0)
            seen += got[token] > 0.99
        context.append(text)
    assert context.tokens == other.encode(NOTE.encode(), start=True)
    assert seen > 40


@pytest.mark.parametrize("name", ["qwen2", "llama-bpe", "llama-spm", "gemma-4", "phi-3"])
def test_contexts_grow_token_by_token_as_the_whole_text(name: str) -> None:
    """Bytes come in any portions, also inside a character; the tokens are those of the whole."""
    made = tokenizer(name)
    context = CanonicalContext(made, [], start=True)
    data, at, rng = NOTE.encode(), 0, np.random.default_rng(0)
    while at < len(data):
        size = int(rng.integers(1, 6))
        context.append(data[at : at + size])
        at += size
    assert context.tokens == made.encode(data, start=True)
