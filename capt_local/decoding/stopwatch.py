"""What tokens cost on this machine, rounded to kinds that lie far apart.

Rounded, since what is drafted decides the shapes of batches, and these the last bits of logits: the
same question should get the same answer twice, also on a machine whose speed drifts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

# So many batches, and single tokens, are timed before they say something.
_ENOUGH = 12
# Longer batches are prompts, in which a token costs less.
_LONGEST = 16
# What the further tokens of a batch cost, over what was expected: no less, and no more than this.
_LEAST, _MOST = 1 / 8, 8.0


def rounded(ratio: float, step: float) -> float:
    """The nearest power of `step`."""
    return float(step ** round(math.log(ratio, step)))


class Stopwatch:
    """Measures a model until it has seen enough.

    Args:
        price: what a batch of so many tokens is expected to cost, in batches of one.

    Attributes:
        one: seconds of one token by itself; None where that is not known yet.
        more: what further tokens of a batch cost over what was expected, a power of 2; None
            likewise.
    """

    def __init__(self, price: Callable[[int], float]) -> None:
        """Has measured nothing."""
        self._price = price
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
            shares = [
                (spent / self.one - 1.0) / (self._price(size) - 1.0)
                for size, spent in self._several
            ]
            share = statistics.median(shares)
            self.more = rounded(min(max(share, _LEAST), _MOST), 2.0)
