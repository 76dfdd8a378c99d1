"""Which alignment fits two vocabularies."""

from __future__ import annotations

from capt_local.align.events import TargetEvents
from capt_local.align.projection import Alignment, Projection, SharedVocabulary
from capt_local.vocab.vocabulary import Vocabulary


def fit(
    proxy: Vocabulary, events: TargetEvents, *, long_tokens: bool = True, healing: bool = True
) -> Alignment:
    """The identity for one shared vocabulary, the projection onto token events for two.

    Args:
        proxy: the vocabulary of expert or base.
        events: of the target.
        long_tokens: see `Projection`.
        healing: see `Projection`.
    """
    if proxy.same_as(events.tokenizer.vocabulary):
        return SharedVocabulary()
    return Projection(proxy, events, long_tokens=long_tokens, healing=healing)
