"""The exact distribution behind a text under a proxy, over all of its tokenizations.

A model over tokens y gives a text the probability

    Z = sum of p(y) p(u | y) over all y that end inside it, and all pieces u that reach its end or
        go beyond it

(minimal coverings: Vieira et al. 2025; Phan et al. 2025; Hayase et al. 2025). The sum runs over a
beam: with `drop` above 0, sequences with less than this share of the probability are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from capt_local.alignment import END_EVENT, TargetEvents
from capt_local.tokenization import PrefixIndex, Vocabulary

Read = Callable[[tuple[int, ...]], np.ndarray]  # the probabilities behind some tokens


class Branch(NamedTuple):
    """Tokens, the end of the text that they do not cover, their weight relative to the text's."""

    tokens: tuple[int, ...]
    rest: bytes
    weight: float


class Coverings:
    """The sequences of a proxy's pieces that cover a growing text; `log_prefix` is log Z."""

    def __init__(
        self, proxy: Vocabulary, events: TargetEvents, read: Read, drop: float = 0.0
    ) -> None:
        self._index, self._ends, self._events = PrefixIndex(proxy), proxy.end_ids, events
        self._row: Read = cache(lambda tokens: read(tokens).astype(np.float64))
        self._table, self._drop = cache(self._make_table), drop
        self._live = [Branch((), b"", 1.0)]
        self.log_prefix = 0.0

    def append(self, text: bytes) -> None:
        """Takes more text."""
        for at in range(len(text)):
            found: list[tuple[float, Branch]] = []
            for tokens, before, weight in self._live:
                row, rest = self._row(tokens), before + text[at : at + 1]
                low, high = self._index.exact(rest)
                for token in self._index.ids[low:high].tolist():
                    mass = weight * float(row[token])
                    found.append((mass, Branch((*tokens, token), b"", mass)))
                longer = self._index.ids[high : self._index.interval(rest)[1]]
                found.append((weight * float(row[longer].sum()), Branch(tokens, rest, weight)))
            least = self._drop * sum(mass for mass, _ in found)
            kept = [(mass, one) for mass, one in found if mass > 0.0 and mass >= least]
            total = sum(mass for mass, _ in kept)
            self.log_prefix += math.log(total)
            self._live = [one._replace(weight=one.weight / total) for _, one in kept]

    def event_masses(self, least: float = 0.0) -> np.ndarray:
        """The probability that the target's tokens go on with each event, shape (events,).

        Where a longer token may still come, a piece of more than `least` is read one step further;
        one of less credits the token that begins it.
        """
        result = np.zeros(self._events.count + 1)  # the last place takes NO_EVENT (-1)
        wave = [(one, b"") for one in self._live]
        while wave:
            (tokens, rest, weight), ahead = wave.pop()
            row = self._row(tokens)
            if not rest:
                end = self._events.first(ahead) if ahead else END_EVENT
                result[end] += weight * row[self._ends].sum()
            low, events, undecided = self._table(rest, ahead)
            masses = weight * row[self._index.ids[low : low + len(events)]]
            for place in np.flatnonzero(undecided & (masses > least)).tolist():
                piece, token = self._index.keys[low + place], int(self._index.ids[low + place])
                further = Branch((*tokens, token), b"", float(masses[place]))
                wave.append((further, ahead + piece[len(rest) :]))
                masses[place] = 0.0
            result += np.bincount(events % len(result), masses, minlength=len(result))
        return result[:-1]

    def _make_table(self, rest: bytes, ahead: bytes) -> tuple[int, np.ndarray, np.ndarray]:
        """The pieces that go on behind `rest`: the first one's place, events, whether undecided."""
        low, high = self._index.exact(rest)[1] if rest else 0, self._index.interval(rest)[1]
        events, undecided, place = (
            np.zeros(high - low, np.intp),
            np.zeros(high - low, np.bool_),
            low,
        )
        while place < high:
            text = ahead + self._index.keys[place][len(rest) :]
            size, end = decided(self._events, text, len(ahead)), place + 1
            if size:  # then it is decided for all that begin alike; they stand side by side
                text = text[:size]
                end = self._index.interval(rest + text[len(ahead) :])[1]
            undecided[place - low] = not size
            events[place - low : end - low] = self._events.first(text)
            place = end
        return low, events, undecided


def decided(events: TargetEvents, text: bytes, known: int = 0) -> int:
    """After how many bytes, more than `known`, no longer token can come; 0 if one still can."""
    for size in range(known + 1, len(text) + 1):
        if events.index.interval(text[:size])[1] == events.index.exact(text[:size])[1]:
            return size
    return 0
