"""What tokens cost on this machine, rounded to kinds that lie far apart.

Rounded, since what is drafted decides the shapes of batches, and these the last bits of logits: the
same question should get the same answer twice, also on a machine whose speed drifts.
"""

from __future__ import annotations

import math
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


def rounded(ratio: float) -> float:
    """The nearest power of the square root of 2."""
    return float(2.0 ** (round(2.0 * math.log2(ratio)) / 2.0))


class Stopwatch:
    """Measures a model until it has seen enough.

    Attributes:
        one: seconds of one token by itself; None where that is not known yet.
        more: one token more in a batch over that, a kind; None likewise.
    """

    def __init__(self) -> None:
        """Has measured nothing."""
        self._single: list[float] = []
        self._several: list[tuple[int, float]] = []
        self.one: float | None = None
        self.more: float | None = None

    def time(self, count: int, seconds: float) -> None:
        """Takes the time of a batch of so many tokens."""
        if self.more is not None or count > _LONGEST:
            return
        if count > 1:
            if len(self._several) < _ENOUGH:  # the first ones; a single token may never come
                self._several.append((count, seconds))
        elif self.one is None:
            self._single.append(seconds)
        if self.one is None and len(self._single) >= _ENOUGH:
            self.one = statistics.median(self._single)
        if self.one is not None and len(self._several) >= _ENOUGH:
            shares = [(spent / self.one - 1.0) / (size - 1) for size, spent in self._several]
            self.more = kind_of(statistics.median(shares))
