"""Which alignment joins two vocabularies."""

from __future__ import annotations

from typing import Any, TypeAlias

from capt_local.alignment import Align
from capt_local.alignment.paper import PublishedMapping, TokenStrings
from capt_local.alignment.projection import Alignment, Projection, SharedVocabulary, TargetEvents
from capt_local.tokenization.tokenizer import TextTokenizer

# What an alignment prepares for a query is its own affair.
AnyAlignment: TypeAlias = Alignment[Any]


def fit(proxy: TextTokenizer, events: TargetEvents, kind: Align = Align.PROJECTION) -> AnyAlignment:
    """The identity for one shared vocabulary; for two the alignment of this kind.

    Args:
        proxy: of expert or base.
        events: of the target.
        kind: see `Align`.
    """
    target, vocabulary = events.tokenizer, proxy.vocabulary
    if kind is Align.CAPT_PAPER:
        return PublishedMapping(
            TokenStrings(target.vocabulary, target.tokenize),
            TokenStrings(vocabulary, proxy.tokenize),
        )
    if vocabulary.same_as(target.vocabulary):
        return SharedVocabulary()
    return Projection(vocabulary, events)
