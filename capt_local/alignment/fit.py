"""Which alignment joins two vocabularies."""

from __future__ import annotations

from typing import Any, TypeAlias

from capt_local.alignment.events import TargetEvents
from capt_local.alignment.kinds import Align
from capt_local.alignment.projection import Projection
from capt_local.alignment.published import TokenStrings
from capt_local.alignment.question import Alignment
from capt_local.alignment.simple import FirstPiece, PrefixMass, PublishedMapping, SharedVocabulary
from capt_local.tokenization.prefix_index import PrefixIndex
from capt_local.tokenization.tokenizer import TextTokenizer

# What an alignment prepares for a question is its own affair.
AnyAlignment: TypeAlias = Alignment[Any]


def fit(
    proxy: TextTokenizer,
    events: TargetEvents,
    kind: Align = Align.PROJECTION,
    *,
    long_tokens: bool = True,
    healing: bool = True,
) -> AnyAlignment:
    """The identity for one shared vocabulary; for two what was asked for.

    Args:
        proxy: of expert or base.
        events: of the target.
        kind: EXACT is no table but a way to read the proxy (`decode.exact`): here it gives the
            projection, which the evidence of a prompt is weighed with.
        long_tokens: see `Projection`.
        healing: see `Projection`.
    """
    target, vocabulary = events.tokenizer, proxy.vocabulary
    if kind is Align.CAPT_PAPER:
        return PublishedMapping(
            TokenStrings(target.vocabulary, target.tokenize),
            TokenStrings(vocabulary, proxy.tokenize),
        )
    if vocabulary.same_as(target.vocabulary):
        return SharedVocabulary()
    if kind is Align.FIRST_PIECE:
        return FirstPiece(proxy, events)
    if kind is Align.PREFIX_MASS:
        index = PrefixIndex(vocabulary)
        return PrefixMass(index, vocabulary.end_ids, events, healing=healing)
    return Projection(vocabulary, events, long_tokens=long_tokens, healing=healing)
