"""Which alignment joins which vocabularies."""

from __future__ import annotations

import pytest

from capt_local.alignment import Align
from capt_local.alignment.fit import fit
from capt_local.alignment.paper import PublishedMapping
from capt_local.alignment.projection import Projection, SharedVocabulary
from tests.alignment.slow import events_of, tokenizer_of
from tests.fakes import make_vocabulary

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
