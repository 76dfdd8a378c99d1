"""Alignment between the vocabularies of real models: Qwen2 and Llama-3 onto Llama-2 and back."""

from __future__ import annotations

import time
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


@cache
def projection(target: str, proxy: str) -> tuple[TargetEvents, Projection]:
    events = TargetEvents(tokenizer(target))
    index = tokenizer(proxy).vocabulary
    started = time.perf_counter()
    made = Projection(index, events)
    print(f"{target} x {proxy}: table in {time.perf_counter() - started:.2f} s")
    return events, made


def sure_of(proxy: str, token: int) -> np.ndarray:
    """A row that is certain of one piece."""
    row = np.zeros(len(tokenizer(proxy).vocabulary), dtype=np.float32)
    row[token] = 1.0
    return row


@pytest.mark.parametrize(("target", "proxy"), PAIRS)
def test_every_text_piece_is_given_away_whole(target: str, proxy: str) -> None:
    """Over all tokens of the target, whatever it expects: 1 less the control tokens."""
    _events, made = projection(target, proxy)
    vocabulary = tokenizer(proxy).vocabulary
    rng = np.random.default_rng(0)
    row = rng.dirichlet(np.full(len(vocabulary), 0.1)).astype(np.float32)
    tokens = np.arange(len(tokenizer(target).vocabulary), dtype=np.int32)
    prior = rng.dirichlet(np.full(len(tokens), 0.1)) + 1e-30
    got = made.probability(made.query(tokens, prior), View(row))
    counted = np.append(np.flatnonzero(vocabulary.is_text), vocabulary.end_ids)
    assert got.sum() == pytest.approx(row[counted].sum(dtype=np.float64), rel=1e-5)
    assert got.min() >= 0.0


@pytest.mark.parametrize(("target", "proxy"), PAIRS)
def test_healed_rows_stay_distributions_along_a_note(target: str, proxy: str) -> None:
    """At every token of a note, healed three pieces back by a proxy that was surprised or not."""
    _events, made = projection(target, proxy)
    other, rng = tokenizer(proxy), np.random.default_rng(0)
    whole = other.encode(NOTE.encode(), start=True)
    tokens = np.arange(len(tokenizer(target).vocabulary), dtype=np.int32)
    question = made.query(tokens, rng.dirichlet(np.full(len(tokens), 0.1)) + 1e-30)
    context, longer = CanonicalContext(other, [], start=True), 0
    text = b"".join(map(other.vocabulary.piece, whole)).removeprefix(other.lead)
    for cut in range(0, len(text), 9):
        context.append(text[cut : cut + 9])
        behind = context.rests(DEPTH)
        last = context.tokens[::-1][: len(behind)]
        rows = rng.dirichlet(np.full(len(other.vocabulary), 0.1), size=len(behind) + 1)
        back = [Back(*each) for each in zip(rows[1:].astype(np.float32), last, behind, strict=True)]
        got = made.probability(question, View(rows[0].astype(np.float32), back))
        assert 0.9 < got.sum() < 1.0 + 1e-5 and got.min() >= 0.0
        longer += sum(made._healer(rest) is not None for rest in behind)
    assert longer > 20


@pytest.mark.parametrize(("target", "proxy"), PAIRS)
def test_a_proxy_that_knows_what_comes_gives_its_token_the_credit(target: str, proxy: str) -> None:
    """Walk a note in the target's tokens: a proxy that is certain of the right next piece, and was
    certain of the right last ones, gives all to a target that expects the token, too."""
    _events, made = projection(target, proxy)
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
