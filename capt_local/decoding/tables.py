"""The alignments of all models onto one that leads, each table made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from capt_local.alignment.fit import AnyAlignment, fit
from capt_local.alignment.projection import TargetEvents
from capt_local.decoding.cached import CachedModel
from capt_local.decoding.follower import Follower
from capt_local.decoding.options import AlignOptions
from capt_local.decoding.proxy import Proxy
from capt_local.tokenization.tokenizer import TextTokenizer


class Tables:
    """Followers of one leading vocabulary.

    Args:
        leader: tokenizer of the model whose tokens are chosen.
        tokenizers: of all models, by role.
    """

    def __init__(self, leader: TextTokenizer, tokenizers: Mapping[str, TextTokenizer]) -> None:
        """Builds nothing yet."""
        self._leader = leader
        self._tokenizers = tokenizers
        self._alignments: list[tuple[AlignOptions, TextTokenizer, AnyAlignment]] = []
        self._followers: dict[tuple[AlignOptions, str], Follower] = {}

    def beside(self) -> Tables:
        """The same tables, for other models with the same vocabularies."""
        other = Tables(self._leader, self._tokenizers)
        other.events = self.events
        other._alignments = self._alignments
        return other

    @cached_property
    def events(self) -> TargetEvents:
        """The events of the leading vocabulary."""
        return TargetEvents(self._leader)

    def followers(self, how: AlignOptions, models: Sequence[CachedModel]) -> tuple[Follower, ...]:
        """Models that read along, aligned as asked; the same ones each time."""
        return tuple(self._follower(how, model) for model in models)

    def _follower(self, how: AlignOptions, cached: CachedModel) -> Follower:
        found = self._followers.get((how, cached.role))
        if found is None:
            found = self._followers[how, cached.role] = self._made(how, cached)
        return found

    def _made(self, how: AlignOptions, cached: CachedModel) -> Follower:
        tokenizer = self._tokenizers[cached.role]
        alignment = self._alignment(how, tokenizer)
        return Proxy(cached, tokenizer, alignment)

    def _alignment(self, how: AlignOptions, tokenizer: TextTokenizer) -> AnyAlignment:
        """One table for all models of one vocabulary."""
        for known, other, alignment in self._alignments:
            if known == how and other.vocabulary.same_as(tokenizer.vocabulary):
                return alignment
        options = {"long_tokens": how.long_tokens, "healing": how.healing}
        made = fit(tokenizer, self.events, how.kind, **options)
        self._alignments.append((how, tokenizer, made))
        return made
