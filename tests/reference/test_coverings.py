"""The oracle against full enumeration, and the projection against the oracle."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.alignment import CanonicalContext, EarlierRow, Projection, TargetEvents
from capt_local.llama.model import LlamaModel
from capt_local.llama.options import LoadOptions
from capt_local.tokenization import TextTokenizer
from tests import real_models
from tests.alignment.slow import events_of
from tests.fakes import FakeModel, make_vocabulary, softmax
from tests.reference.coverings import Coverings, decided

NOTE = (
    b"The patient is a 61-year-old woman who presents with shortness of breath. She was given "
    b"furosemide 40 mg; SpO2 91 \xc2\xb1 2 %, and feels better."
)
WORDS = st.lists(st.text("ab", min_size=1, max_size=3), max_size=6)  # a piece may stand there twice
SEEDS = st.integers(0, 2**32 - 1)


class Toy(FakeModel):
    """A proxy whose rows are a random function of all tokens so far."""

    def __init__(self, words: list[str], seed: int) -> None:
        super().__init__(make_vocabulary(words, all_bytes=False), seed, scale=1.5, end_logit=0.0)

    def read(self, tokens: tuple[int, ...]) -> np.ndarray:
        row = softmax(self.logits(tokens))
        row[0] = 0.0  # the control token is no event
        return row / row.sum()

    def z(self, text: bytes, tokens: tuple[int, ...] = (), *, ended: bool = False) -> float:
        """Z by its definition; with `ended`, of exactly this text and then an end."""
        row = self.read(tokens)
        if not text:
            return float(row[self.vocabulary.end_ids].sum()) if ended else 1.0
        total = 0.0
        for token in np.flatnonzero(self.vocabulary.is_text).tolist():
            piece = self.vocabulary.piece(token)
            if text.startswith(piece):
                total += row[token] * self.z(text[len(piece) :], (*tokens, token), ended=ended)
            elif piece.startswith(text) and not ended:
                total += row[token]
        return total

    def event_masses(self, events: TargetEvents, text: bytes, letters: bytes) -> np.ndarray:
        """The events behind a text, from every string that may follow."""
        found, reach = np.zeros(events.count), max(map(len, events.index.keys))
        for size in range(reach + 1):
            for each in map(bytes, product(letters, repeat=size)):
                mass = self.z(text + each, ended=size < reach)
                found[events.first(each) if each else 0] += mass
        return found / self.z(text)


@settings(max_examples=40, deadline=None)
@given(WORDS, WORDS, st.text("ab", max_size=4), SEEDS)
def test_the_oracle_is_full_enumeration(
    words: list[str], own: list[str], text: str, seed: int
) -> None:
    toy, events = (
        Toy([*words, "a", "b"], seed),
        events_of(make_vocabulary(["a", "b", *own], all_bytes=False)),
    )
    found = Coverings(toy.vocabulary, events, toy.read)
    found.append(text.encode())
    assert math.exp(found.log_prefix) == pytest.approx(toy.z(text.encode()), rel=1e-6)
    wanted = toy.event_masses(events, text.encode(), b"ab")
    np.testing.assert_allclose(found.event_masses(), wanted, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS, SEEDS)
def test_the_projection_is_exact_where_each_piece_decides_the_token(
    words: list[str], own: list[str], seed: int
) -> None:
    """At the start, and, healed, behind one piece: there are no other coverings."""
    target = make_vocabulary(["a", "b", "c", *own], all_bytes=False)
    events = events_of(target)
    words = sorted({word for word in words if decided(events, word.encode())})
    toy = Toy(["c", *words, *(f"c{word}" for word in words)], seed)
    every, first = np.arange(len(target), dtype=np.int32), 2  # the token "c"
    made, prior = Projection(toy.vocabulary, events), np.full(len(target), 1 / len(target))
    back = [EarlierRow(toy.read(()), first, b"c")]
    for text, view in ((b"", (toy.read(()),)), (b"c", (toy.read((first,)), back))):
        said = made.probability(made.query(every, prior), *view)
        mine = np.bincount(events.of_token + 1, said, minlength=events.count + 1)[1:]
        wanted = toy.event_masses(events, text, b"abc")
        np.testing.assert_allclose(mine, wanted, atol=1e-6)


@pytest.mark.slow
def test_the_projection_is_near_the_sum_over_all_tokenizations() -> None:
    """Event by event along a note, in total variation; without healing it is farther away."""
    options = LoadOptions(threads=1, context=512)
    target = LlamaModel.open(real_models.smollm2(), options)
    expert = LlamaModel.open(real_models.demo_proxy("expert"), options)
    own, other = (TextTokenizer(model.vocabulary, model.tokenize) for model in (target, expert))
    events, bos = TargetEvents(own), expert.vocabulary.bos
    assert bos is not None

    def read(tokens: tuple[int, ...]) -> np.ndarray:
        expert.rewind(0)
        return softmax(expert.extend([bos, *tokens], 1)[0])

    exact = Coverings(expert.vocabulary, events, read, drop=1e-3)
    exact.append(other.leading_space)
    context = CanonicalContext(other, [bos], start=True)
    made = Projection(expert.vocabulary, events)
    every = np.arange(len(target.vocabulary), dtype=np.int32)
    distances: dict[bool, list[float]] = {True: [], False: []}
    prior = target.extend([int(target.vocabulary.end_ids[0])], 1)[0]
    for token in own.encode(NOTE, start=True):
        wanted = exact.event_masses(least=0.005)
        query = made.query(every, softmax(prior))
        for healing, found in distances.items():
            rests = context.rests(made.depth if healing else 0)
            expert.rewind(0)
            rows = [softmax(row) for row in expert.extend(context.tokens, len(rests) + 1)][::-1]
            places = zip(rows[1:], context.tokens[::-1], rests, strict=False)
            said = made.probability(query, rows[0], [EarlierRow(*each) for each in places])
            mine = np.bincount(events.of_token + 1, said, minlength=events.count + 1)[1:]
            found.append(float(np.abs(mine / mine.sum() - wanted / wanted.sum()).sum()) / 2)
        piece = own.vocabulary.piece(token)
        exact.append(piece)
        context.append(piece)
        prior = target.extend([token], 1)[0]
    healed, plain = np.mean(distances[True]), np.mean(distances[False])
    print(f"total variation {healed:.3f}, without healing {plain:.3f}")
    assert healed < 0.12 < 0.15 < plain
    target.close()
    expert.close()
