"""Alignment between the vocabularies of real models: Qwen2 and Llama-3 onto Llama-2 and back."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from capt_local.align.context import CanonicalContext
from capt_local.align.events import TargetEvents
from capt_local.align.projection import Projection
from capt_local.vocab.tokenizer import TextTokenizer
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
    made = Projection(tokenizer(proxy).vocabulary, events, long_tokens=True, healing=True)
    return events, made


def sure_of(proxy: str, token: int) -> np.ndarray:
    """A row that is certain of one piece."""
    row = np.zeros(len(tokenizer(proxy).vocabulary), dtype=np.float32)
    row[token] = 1.0
    return row


@pytest.mark.parametrize(("target", "proxy"), PAIRS)
def test_every_text_piece_credits_the_token_that_begins_it(target: str, proxy: str) -> None:
    """Each piece of the proxy is worth its whole probability to one event, and not lost."""
    events, _made = projection(target, proxy)
    vocabulary = tokenizer(proxy).vocabulary
    everything = np.arange(events.count, dtype=np.int32)
    plain = Projection(vocabulary, events, long_tokens=False, healing=False)
    row = np.full(len(vocabulary), 1.0 / len(vocabulary), dtype=np.float32)
    got = plain.probability(everything, row, None, b"").sum()
    counted = vocabulary.is_text.sum() + len(vocabulary.end_ids)
    assert got == pytest.approx(counted / len(vocabulary), rel=1e-3)


@pytest.mark.parametrize(("target", "proxy"), PAIRS)
def test_a_proxy_that_knows_what_comes_gives_its_token_the_credit(target: str, proxy: str) -> None:
    """Walk a note in the target's tokens: a proxy that is certain of the right next piece, and was
    certain of the right last one, gives the target's true token all or the first part of it."""
    _events, made = projection(target, proxy)
    own, other = tokenizer(target), tokenizer(proxy)
    context = CanonicalContext(other, [], start=True)
    whole = other.encode(NOTE.encode(), start=True)
    seen = 0
    for token in own.encode(NOTE.encode(), start=True):
        piece = own.vocabulary.piece(token)
        wanted = made.events(np.array([token], dtype=np.int32))
        place = len(context.tokens)
        boundary = context.tokens == whole[:place] and place < len(whole)
        text = piece if context.text else piece.removeprefix(own.lead)
        if boundary and place and context.text:
            before = sure_of(proxy, whole[place - 1])
            got = made.probability(
                wanted, sure_of(proxy, whole[place]), before, context.last_piece
            )[0]
            assert got == pytest.approx(1.0) or text.startswith(
                other.vocabulary.piece(whole[place])
            )
            seen += got > 0.99
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


def test_the_table_takes_little_memory() -> None:
    """152k x 32k: tables of a few megabytes, as docs/method.md says."""
    events, made = projection("qwen2", "llama-spm")
    assert events.of_token.nbytes + made._plain.size * 4 < 8_000_000
