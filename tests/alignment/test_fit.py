"""Which alignment joins which vocabularies."""

from __future__ import annotations

import numpy as np
import pytest

from capt_local.alignment import Align
from capt_local.alignment.fit import fit
from capt_local.alignment.paper import PublishedMapping
from capt_local.alignment.projection import Projection, SharedVocabulary, View
from tests.alignment.slow import events_of, tokenizer_of
from tests.fakes import make_vocabulary
from tests.published_toys import lettered, spaced

TARGET = make_vocabulary(["ab", "abc"])
OTHER = tokenizer_of(make_vocabulary(["ab", "bc"]))
KINDS = {
    Align.PROJECTION: Projection,
    Align.CAPT_PAPER: PublishedMapping,
}


@pytest.mark.parametrize("kind", list(Align))
def test_two_vocabularies_are_joined_as_asked(kind: Align) -> None:
    made = fit(OTHER, events_of(TARGET), kind)
    assert type(made) is KINDS[kind] and not made.follows_tokens


@pytest.mark.parametrize("kind", list(Align))
def test_one_vocabulary_is_the_identity_but_for_what_was_published(kind: Align) -> None:
    made = fit(tokenizer_of(make_vocabulary(["ab", "abc"])), events_of(TARGET), kind)
    published = kind is Align.CAPT_PAPER
    assert type(made) is (PublishedMapping if published else SharedVocabulary)


def test_one_vocabulary_is_the_identity() -> None:
    made, tokens = SharedVocabulary(), np.arange(5, 9, dtype=np.int32)
    row = np.random.default_rng(0).dirichlet(np.ones(len(TARGET))).astype(np.float32)
    query = made.query(tokens, np.full(4, 0.25))
    np.testing.assert_array_equal(made.probability(query, View(row)), row[5:9])
    assert query.aligned.all() and made.follows_tokens and made.depth == 0


def test_the_published_mapping_looks_up_strings_and_compares_twenty() -> None:
    target, proxy = lettered("card", "iac", "Ġcard"), spaced("▁card", "card", "i")
    made = PublishedMapping(target.strings, proxy.strings)
    tokens = np.array([target.id(each) for each in ("card", "iac")], dtype=np.int32)
    query = made.query(tokens, np.full(2, 0.5))
    keys = [target.strings.key(token) for token in tokens.tolist()]
    assert query.wanted.tolist() == [proxy.strings.piece(key) for key in keys]
    row = np.random.default_rng(0).dirichlet(np.ones(len(proxy.vocabulary))).astype(np.float32)
    np.testing.assert_array_equal(made.probability(query, View(row)), row[query.wanted])
    assert made.most == 20 and made.depth == 0
