"""A proxy over all tokenizations of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capt_local.alignment.events import END_EVENT, TargetEvents
from capt_local.alignment.exact.coverings import Coverings
from capt_local.alignment.exact.events import EventTables
from capt_local.alignment.question import FloatArray, Probabilities
from capt_local.decoding.cached import CachedModel
from capt_local.decoding.proxy import softmax
from capt_local.prompting.messages import Prompt
from capt_local.tokenization.prefix_index import PrefixIndex
from capt_local.tokenization.vocabulary import IntArray

# Open pieces of more than this probability are read one step on, for the exact token events.
OPEN = 0.1


@dataclass(frozen=True, slots=True)
class Limits:
    """See `Coverings`."""

    width: int = 8
    drop: float = 1e-3


def event_tables(index: PrefixIndex, events: TargetEvents) -> EventTables:
    """The target's events for the pieces of one proxy."""

    def extendable(text: bytes) -> bool:
        return events.index.interval(text)[1] > events.index.exact(text)[1]

    return EventTables(index, events.first, extendable, events.count)


class Beam:
    """Follows a text over all tokenizations.

    Args:
        cached: the model; nobody else may move it.
        index: its text tokens in byte order.
        limits: of the beam.

    Attributes:
        coverings: of the text so far.
    """

    def __init__(self, cached: CachedModel, index: PrefixIndex, limits: Limits) -> None:
        self.cached = cached
        self._index = index
        self._limits = limits
        self._head: list[int] = []
        self.coverings = self._empty()

    def start(self, prompt: Prompt) -> float:
        """Begins a text; returns the log-probability of the tokenizer's own space in front."""
        self._head = list(prompt.tokens)
        self.coverings = self._empty()
        return self.append(prompt.lead) if prompt.lead else 0.0

    def append(self, text: bytes) -> float:
        """Takes more text; returns its log-probability."""
        logp = self.coverings.append(text)
        self._head += self.coverings.rebase()
        return logp

    def prefixes(self, wanted: IntArray, events: TargetEvents) -> FloatArray:
        """The probability that the text goes on with the bytes of events, or ends, shape (n,)."""
        said = np.zeros(len(wanted))
        said[wanted == END_EVENT] = self.coverings.end()
        texts = np.flatnonzero(wanted > END_EVENT)
        said[texts] = self.coverings.prefix([events.piece(int(one)) for one in wanted[texts]])
        return said

    def events(self, wanted: IntArray, tables: EventTables) -> FloatArray:
        """The probability of token events, shape (n,)."""
        every = self.coverings.events(tables, mass=OPEN)
        return np.where(wanted >= 0, every[wanted], 0.0)

    def _empty(self) -> Coverings:
        end_ids, how = self.cached.model.vocabulary.end_ids, self._limits
        return Coverings(self._index, end_ids, self._read, width=how.width, drop=how.drop)

    def _read(self, tails: Sequence[tuple[int, ...]]) -> Probabilities:
        cached, most = self.cached, self.cached.model.max_rows
        if not tails[0]:
            return softmax(cached.follow(self._head, 1)[0])[None, :]
        cached.bring(self._head)
        rows: list[Probabilities] = []
        for at in range(0, len(tails), most):
            rows += [softmax(row) for row in cached.branch(tails[at : at + most])]
        return np.stack(rows)
