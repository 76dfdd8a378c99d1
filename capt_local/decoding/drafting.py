"""Drafts: tokens that may come next, which all models read in one batch before they are chosen.

Nothing here chooses a token. What is drafted is only read ahead; each choice is then made as step
by step, from the same formulas over the same texts with the same bits, and finds its rows there or
has them decoded. So a wrong draft, or none, changes the time and never the answer; with a
temperature the draws are the same, too.

There are two sources. Earlier text: notes are copied from, and phrases come again; what followed
the last few tokens there is the draft (prompt lookup decoding, Saxena 2023). And the leading model
itself: it decodes its own likeliest tokens one by one, as it would alone, and the proxies read
them in one batch.
"""

from __future__ import annotations

from array import array

import numpy as np

from capt_local.decoding.combine import Distribution
from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.options import DraftCount, DraftStats
from capt_local.decoding.proxy import LogitsCache

LOOKUP, TARGET = "lookup", "target-draft"

_LONGEST_MATCH, _SHORTEST_MATCH = 6, 2
# Chance that a drafted token is right before anything is known about the answer: by the length of
# the match (2, 3, 4 and more), and where the leader is less and more than 90 % sure of its token.
_PRIORS = {LOOKUP: (0.4, 0.7, 0.9), TARGET: (0.6, 0.95)}
_SURE = 0.9
_STRENGTH, _FADING = 8.0, 0.97  # observations that a prior counts for; of what was seen earlier
_MOST = 8  # tokens of a draft
_GAIN = 1.05  # expected speed over step by step from which on a draft is made


class Drafter:
    """Drafts for one answer of models that can take tokens back, counted in `stats`."""

    def __init__(self, ensemble: Ensemble, stats: DraftStats) -> None:
        self._ensemble = ensemble
        self._stats = stats
        self._chances = {
            name: [[chance * _STRENGTH, _STRENGTH] for chance in priors]
            for name, priors in _PRIORS.items()
        }
        self._text = array("i")
        self._source = LOOKUP
        self._draft: list[int] = []
        self._kinds: list[int] = []
        self._at = 0  # tokens of the draft that have been chosen
        ensemble.leader.keep_as(np.copy)

    def propose(self, most: int) -> None:
        """Reads ahead, if that is worth it, where the next choice has not been read yet.

        The answer may still have `most` tokens.
        """
        ensemble = self._ensemble
        if self._at < len(self._draft):
            return
        # The proxies may need a few tokens more than the leader for the same text.
        most = min(
            most - 1, ensemble.tokens_left // 2 - 1, ensemble.leader.model.max_rows - 1, _MOST
        )
        self._draft, self._kinds, self._at = [], [], 0
        if most < 1:
            return
        if ensemble.leader.model.batch_floor != 1:
            self._look_up(most)
        # Proxies that are skipped here catch up where they count, and read ahead from there.
        if not self._draft and not ensemble.target_alone and not ensemble.skips_proxies:
            self._ask_leader(most)
        if self._draft:
            count = self._stats.by_source.setdefault(self._source, DraftCount())
            count.rounds += 1
            count.drafted += len(self._draft)
            ensemble.read_ahead(self._draft, read=self._source == TARGET)

    def accept(self, token: int, here: Distribution | None) -> None:
        """A token has been chosen, from `here` unless the leader alone had a say.

        The draft goes on or ends.
        """
        if self._at < len(self._draft):
            right = self._draft[self._at] == token
            self._observe(self._source, self._kinds[self._at], right)
            self._stats.by_source[self._source].accepted += right
            self._at = self._at + 1 if right else len(self._draft)
        elif here is not None:
            best = int(here.candidates.logp.argmax())
            sure = int(np.exp(here.candidates.logp[best]) >= _SURE)
            self._observe(TARGET, sure, int(here.candidates.tokens[best]) == token)

    def _observe(self, source: str, kind: int, right: bool) -> None:
        counts = self._chances[source][kind]
        counts[:] = _FADING * counts[0] + right, _FADING * counts[1] + 1.0

    def _chance(self, source: str, kind: int) -> float:
        right, seen = self._chances[source][kind]
        return min(right / seen, 0.99)

    def _look_up(self, most: int) -> None:
        """What followed the longest match, as long a piece of it as promises most."""
        tokens = self._ensemble.tokens
        self._text.extend(tokens[len(self._text) :])
        text, size = np.frombuffer(self._text, np.int32), len(tokens)
        ends, length = np.flatnonzero(text[:-1] == text[-1]) + 1, 1  # of what matches so far
        while length < _LONGEST_MATCH:
            longer = ends[ends > length]
            longer = longer[text[longer - length - 1] == text[size - length - 1]]
            if not len(longer):
                break
            ends, length = longer, length + 1
        if length < _SHORTEST_MATCH or not len(ends):
            return
        kind = min(length - _SHORTEST_MATCH, 2)
        chance = self._chance(LOOKUP, kind)
        price = self._ensemble.leader.model.price
        best, count, expected, tokens_made = _GAIN, 0, 1.0, 1.0
        for drafted in range(1, most + 1):
            expected *= chance
            tokens_made += expected
            gain = tokens_made / price(drafted + 1)  # the proxies' batches cost alike
            if gain > best:
                best, count = gain, drafted
        draft = tokens[ends[-1] : ends[-1] + count]
        for place in range(count - len(draft)):  # over the end of the text into the match itself
            draft.append(draft[place])
        self._source, self._draft, self._kinds = LOOKUP, draft, [kind] * count

    def _ask_leader(self, most: int) -> None:
        """The leader's likeliest tokens, as long as the next one is sure enough to be chosen.

        A token that is drafted in vain costs one of the leader's; one that is right saves a part of
        what the proxies cost.
        """
        ensemble = self._ensemble
        # What a right token saves, in tokens of the leader: by the bytes of weights.
        saved = sum(_saved(cache, most) for cache in ensemble.models[1:])
        needed = 1.0 / (1.0 + saved / max(ensemble.leader.model.size, 1))
        tokens, ends = list(ensemble.tokens), ensemble.leader.model.vocabulary.is_end
        kinds: list[int] = []
        promise = 1.0  # that all of them are right
        while len(kinds) < most:
            row = ensemble.leader.logits_for(tokens)[0]
            token = int(row.argmax())
            kind = int(1.0 / float(np.exp(row - row[token]).sum()) >= _SURE)
            promise *= self._chance(TARGET, kind)
            if ends[token] or promise < needed:
                break
            kinds.append(kind)
            tokens.append(token)
        if len(kinds) > 1:  # one token alone is a step
            self._source, self._draft, self._kinds = TARGET, tokens[-len(kinds) :], kinds


def _saved(cache: LogitsCache, count: int) -> float:
    """Bytes of weights that need not be read for a token where so many are read together."""
    if cache.exact and cache.model.batch_floor == 1:
        return 0.0  # they are read one by one
    return cache.model.size * (1.0 - cache.model.price(count) / count)
