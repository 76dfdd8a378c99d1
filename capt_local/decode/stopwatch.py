"""What one token more in a batch costs on this machine, rounded to one of three kinds.

Rounded, since what is drafted decides the shapes of batches, and these the last bits of logits: the
same question should get the same answer twice, also on a machine whose speed drifts.
"""

from __future__ import annotations

import statistics

# One token more in a batch, over one by itself. A GPU reads the weights once for all; a CPU
# computes for each (measured 0.20 to 0.25); the last is for machines that gain nothing.
CHEAP, FAIR, DEAR = 0.03, 0.22, 0.7
_LIMITS = (0.08, 0.45)
# So many batches, and single tokens, are timed before they say something.
_ENOUGH = 12
# Longer batches are prompts, in which a token costs less.
_LONGEST = 16


def kind_of(share: float) -> float:
    """The kind of a machine on which one token more in a batch costs this share of one."""
    return CHEAP if share < _LIMITS[0] else FAIR if share < _LIMITS[1] else DEAR


class Stopwatch:
    """Measures what one token more in a batch costs, until it has seen enough."""

    def __init__(self) -> None:
        """Has measured nothing."""
        self._single: list[float] = []
        self._several: list[tuple[int, float]] = []
        self.more: float | None = None

    def time(self, count: int, seconds: float) -> None:
        """Takes the time of a batch of so many tokens."""
        if self.more is not None or count > _LONGEST:
            return
        if count == 1:
            self._single.append(seconds)
        else:
            self._several.append((count, seconds))
        if min(len(self._single), len(self._several)) >= _ENOUGH:
            one = statistics.median(self._single)
            shares = [(spent / one - 1.0) / (size - 1) for size, spent in self._several]
            self.more = kind_of(statistics.median(shares))
