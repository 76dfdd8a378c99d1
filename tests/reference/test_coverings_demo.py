"""Exact probabilities of the demo expert, against its own tokens and the projection."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from capt_local.alignment.context import CanonicalContext
from capt_local.alignment.projection import (
    END_EVENT,
    Back,
    Projection,
    TargetEvents,
    View,
)
from capt_local.llama.model import LlamaModel
from capt_local.llama.options import LoadOptions
from capt_local.tokenization.tokenizer import TextTokenizer
from capt_local.tokenization.vocabulary import PrefixIndex
from tests import real_models
from tests.fakes import softmax
from tests.reference.coverings import Coverings
from tests.reference.events import EventTables

NOTE = (
    b"The patient is a 61-year-old woman who presents with shortness of breath. She was given "
    b"furosemide 40 mg; SpO2 91 \xc2\xb1 2 %, and feels better."
)


class Follower:
    """A model that reads tails behind a head, as `Coverings` wants it."""

    def __init__(self, model: LlamaModel, head: Sequence[int]) -> None:
        self.model = model
        self.head = list(head)

    def read(self, tails: Sequence[tuple[int, ...]]) -> np.ndarray:
        model, rows = self.model, np.empty((len(tails), len(self.model.vocabulary)), np.float32)
        if not tails[0]:
            model.rewind(0)
            rows[0] = softmax(model.extend(self.head, 1)[0])
            return rows
        if len(self.head) > model.position:
            model.extend(self.head[model.position :], 0)
        for at in range(0, len(tails), model.max_rows):
            for place, logits in enumerate(model.branch(tails[at : at + model.max_rows])):
                rows[at + place] = softmax(logits)
        return rows


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, LlamaModel]]:
    paths = {"target": real_models.smollm2(), "expert": real_models.demo_proxy("expert")}
    opened = {
        role: LlamaModel.open(path, LoadOptions(threads=1, context=512))
        for role, path in paths.items()
    }
    yield opened
    for model in opened.values():
        model.close()


def canonical_logp(model: LlamaModel, tokens: Sequence[int]) -> float:
    model.rewind(0)
    rows = [softmax(model.extend([token], 1)[0]) for token in tokens[:-1]]
    return sum(math.log(row[token]) for row, token in zip(rows, tokens[1:], strict=True))


@pytest.mark.slow
def test_all_tokenizations_are_at_least_the_canonical_one(models: dict[str, LlamaModel]) -> None:
    expert = models["expert"]
    tokenizer = TextTokenizer(expert.vocabulary, expert.tokenize)
    bos = expert.vocabulary.bos
    assert bos is not None
    canonical = canonical_logp(expert, [bos, *tokenizer.encode(NOTE, start=True)])
    follower = Follower(expert, [bos])
    found = Coverings(PrefixIndex(expert.vocabulary), expert.vocabulary.end_ids, follower.read)
    nats = -found.append(tokenizer.lead)
    target = TextTokenizer(models["target"].vocabulary, models["target"].tokenize)
    events = TargetEvents(target)
    tables = EventTables(
        found.index,
        events.first,
        lambda text: events.index.interval(text)[1] > events.index.exact(text)[1],
        events.count,
    )
    tokens = target.encode(NOTE, start=True)
    chances, near = [], 0
    for token in tokens:
        follower.head += found.rebase()
        shares = found.events(tables, mass=0.005)
        # Control tokens, and pieces that were left out, are missing.
        assert 0.9 < shares.sum() <= 1.0 + 1e-5
        assert shares[END_EVENT] == pytest.approx(found.end(), abs=1e-7)
        piece = target.vocabulary.piece(token)
        predicted = float(found.prefix([piece])[0])
        came = -found.append(piece)
        # Long tokens need rows inside them, some of which are read only when the token has come.
        assert predicted < math.exp(-came) * 1.05
        near += predicted > math.exp(-came) * 0.95
        chances.append(shares[events.of_token[token]])
        nats += came
    assert near > 0.8 * len(tokens)
    assert found.log_prefix >= canonical
    assert nats <= -canonical * 1.005
    assert nats == pytest.approx(-found.log_prefix, abs=found.lost + 0.5)
    # Token by token it costs more: undecided pieces of little mass credit their first token.
    events_nats = -float(np.log(np.array(chances) + 1e-6).sum())
    assert events_nats < -canonical * 1.2
    assert found.positions < 16 * len(tokens) and len(follower.head) > 20


@pytest.mark.slow
def test_the_projection_is_near_the_sum_over_all_tokenizations(
    models: dict[str, LlamaModel],
) -> None:
    """Event by event along a note; without healing it is farther away."""
    expert, target = models["expert"], models["target"]
    own = TextTokenizer(target.vocabulary, target.tokenize)
    other = TextTokenizer(expert.vocabulary, expert.tokenize)
    events, bos = TargetEvents(own), expert.vocabulary.bos
    assert bos is not None
    tokens = own.encode(NOTE, start=True)
    target.rewind(0)
    first = int(target.vocabulary.end_ids[0])
    priors = [softmax(target.extend([token], 1)[0]) for token in [first, *tokens]]
    pieces = list(map(own.vocabulary.piece, tokens))
    exact = exact_events(expert, bos, other, events, pieces)
    distance = {}
    for healing in (True, False):
        made = Projection(expert.vocabulary, events)
        context, found = CanonicalContext(other, [bos], start=True), []
        for token, prior, shares in zip(tokens, priors, exact, strict=False):
            rests = context.rests(made.depth if healing else 0)
            expert.rewind(0)
            rows = [softmax(row) for row in expert.extend(context.tokens, len(rests) + 1)]
            rows.reverse()
            last = context.tokens[::-1]
            back = [Back(rows[n + 1], last[n], rest) for n, rest in enumerate(rests)]
            every = np.arange(len(prior), dtype=np.int32)
            said = made.probability(made.query(every, prior.astype(float)), View(rows[0], back))
            mine = np.bincount(events.of_token + 1, said, minlength=events.count + 1)[1:]
            found.append(0.5 * float(np.abs(mine / mine.sum() - shares / shares.sum()).sum()))
            context.append(own.vocabulary.piece(token))
        distance[healing] = float(np.mean(found))
    print(distance)
    assert distance[True] < distance[False]
    assert distance[True] < 0.25


def exact_events(
    model: LlamaModel, bos: int, tokenizer: TextTokenizer, events: TargetEvents, pieces: list[bytes]
) -> list[np.ndarray]:
    """The exact distribution over the target's events before each piece."""
    follower = Follower(model, [bos])
    found = Coverings(PrefixIndex(model.vocabulary), model.vocabulary.end_ids, follower.read)
    found.append(tokenizer.lead)
    tables = EventTables(
        found.index,
        events.first,
        lambda text: events.index.interval(text)[1] > events.index.exact(text)[1],
        events.count,
    )
    result = []
    for piece in pieces:
        follower.head += found.rebase()
        result.append(found.events(tables, mass=0.005))
        found.append(piece)
    return result
