"""Speculative drafts: likely next tokens, which all models decode in one batch ahead of sampling.

Drafting never chooses a token. Drafted tokens are only decoded ahead; each token is then sampled as
in plain decoding, by the same formulas from bit-identical logits, which are either in the cache or
decoded now. A wrong draft therefore costs time and never changes the answer, nor the random draws
at a temperature above 0.

There are two sources. Prompt lookup (Saxena 2023): the tokens after an earlier occurrence of the
last few tokens, since answers copy from notes and phrases recur. And the leading model itself: it
decodes its own likeliest tokens one by one, as it would alone, and the proxies decode them in one
batch.
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
# Prior acceptance rates of a drafted token: for prompt lookup by the length of the match (2, 3, 4
# and more); for the leader by whether its probability of the token is below or above 90 %.
_PRIORS = {LOOKUP: (0.4, 0.7, 0.9), TARGET: (0.6, 0.95)}
_SURE = 0.9
_PRIOR_COUNT, _FADING = 8.0, 0.97  # pseudo-observations of a prior; decay of earlier observations
_MOST = 8  # longest draft, in tokens
_MIN_SPEEDUP = 1.05  # a draft is made if its expected speedup over plain decoding is above this


class Drafter:
    """Makes the drafts of one answer, counted in `stats`; all models must be able to rewind."""

    def __init__(self, ensemble: Ensemble, stats: DraftStats) -> None:
        self._ensemble = ensemble
        self._stats = stats
        self._chances = {
            name: [[chance * _PRIOR_COUNT, _PRIOR_COUNT] for chance in priors]
            for name, priors in _PRIORS.items()
        }
        self._text = array("i")
        self._source = LOOKUP
        self._draft: list[int] = []
        self._kinds: list[int] = []
        self._at = 0  # tokens of the draft accepted so far
        ensemble.leader.set_row_transform(np.copy)

    def propose(self, most: int) -> None:
        """Makes a draft if the last one is used up and a new one is expected to pay.

        `most`: tokens that the answer may still have.
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
            self._draft_from_text(most)
        # Skipped proxies decode the missing tokens when they are next needed, and draft from there.
        if not self._draft and not ensemble.target_alone and not ensemble.skips_proxies:
            self._draft_with_leader(most)
        if self._draft:
            count = self._stats.by_source.setdefault(self._source, DraftCount())
            count.rounds += 1
            count.drafted += len(self._draft)
            ensemble.read_ahead(self._draft, read=self._source == TARGET)

    def accept(self, token: int, here: Distribution | None) -> None:
        """Compares a sampled token with the draft, which continues or is dropped.

        `here`: the distribution it was sampled from; None if that was the leader's alone.
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

    def _draft_from_text(self, most: int) -> None:
        """Drafts the continuation of the longest match, of the length with the best speedup."""
        tokens = self._ensemble.tokens
        self._text.extend(tokens[len(self._text) :])
        text, size = np.frombuffer(self._text, np.int32), len(tokens)
        ends, length = np.flatnonzero(text[:-1] == text[-1]) + 1, 1  # of the matches so far
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
        batch_cost = self._ensemble.leader.model.batch_cost
        best, count, expected, tokens_made = _MIN_SPEEDUP, 0, 1.0, 1.0
        for drafted in range(1, most + 1):
            expected *= chance
            tokens_made += expected
            gain = tokens_made / batch_cost(drafted + 1)  # the proxies' batches cost alike
            if gain > best:
                best, count = gain, drafted
        draft = tokens[ends[-1] : ends[-1] + count]
        for place in range(count - len(draft)):  # past the end of the text: the draft repeats
            draft.append(draft[place])
        self._source, self._draft, self._kinds = LOOKUP, draft, [kind] * count

    def _draft_with_leader(self, most: int) -> None:
        """Drafts the leader's likeliest tokens while their joint acceptance is likely enough.

        A rejected token costs one decode of the leader; an accepted one saves a part of the
        proxies' decode.
        """
        ensemble = self._ensemble
        # What an accepted token saves, in decodes of the leader, estimated by bytes of weights.
        saved = sum(_saved(cache, most) for cache in ensemble.models[1:])
        needed = 1.0 / (1.0 + saved / max(ensemble.leader.model.size, 1))
        tokens, ends = list(ensemble.tokens), ensemble.leader.model.vocabulary.is_end
        kinds: list[int] = []
        promise = 1.0  # probability that the whole draft is accepted
        while len(kinds) < most:
            row = ensemble.leader.logits_for(tokens)[0]
            token = int(row.argmax())
            kind = int(1.0 / float(np.exp(row - row[token]).sum()) >= _SURE)
            promise *= self._chance(TARGET, kind)
            if ends[token] or promise < needed:
                break
            kinds.append(kind)
            tokens.append(token)
        if len(kinds) > 1:  # a draft of one token saves nothing
            self._source, self._draft, self._kinds = TARGET, tokens[-len(kinds) :], kinds


def _saved(cache: LogitsCache, count: int) -> float:
    """Bytes of weights saved per token if `count` tokens are decoded in one batch."""
    if cache.exact and cache.model.batch_floor == 1:
        return 0.0  # decoded one by one
    return cache.model.size * (1.0 - cache.model.batch_cost(count) / count)
