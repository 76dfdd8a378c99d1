"""Which alignment joins two vocabularies."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeAlias

from capt_local.align.events import TargetEvents
from capt_local.align.projection import Projection
from capt_local.align.published import TokenStrings
from capt_local.align.question import Alignment
from capt_local.align.simple import FirstPiece, PrefixMass, PublishedMapping, SharedVocabulary
from capt_local.vocab.prefix_index import PrefixIndex
from capt_local.vocab.tokenizer import TextTokenizer

# What an alignment prepares for a question is its own affair.
AnyAlignment: TypeAlias = Alignment[Any]


class Align(StrEnum):
    """How tokens of the target are looked up at a proxy.

    PROJECTION is the default. EXACT sums over all tokenizations, with a beam, at many more
    positions a step. The others are there to be compared with it and cost no more than it does.
    """

    PROJECTION = "projection"
    EXACT = "exact"
    PREFIX_MASS = "prefix-mass"
    FIRST_PIECE = "first-piece"
    CAPT_PAPER = "capt-paper"

    @property
    def cost(self) -> str:
        """What a step costs beside one position for each new token of a proxy."""
        if self is Align.EXACT:
            return "about three more positions a step and proxy, on sequences of their own"
        return "no extra positions"


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
