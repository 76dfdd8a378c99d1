"""Weights of several combinations from the evidence of a text: Bayesian model averaging.

Each combination gives a distribution; its weight is proportional to the probability that it gave
to the text so far. Over any text the mixture is then within log(m) nats of the best of m
combinations in hindsight, so that with the target alone among them it can hardly be worse than the
target alone. A slow forgetting gives that bound up for a text that changes.
"""

from __future__ import annotations

import numpy as np

from capt_local.decoding.combine import FloatArray
from capt_local.decoding.options import FORGETTING


class Evidence:
    """Collects how well each of m combinations predicts a text.

    Args:
        count: m.
        forgetting: factor on all earlier evidence at each token; 1 forgets nothing.

    Attributes:
        seen: tokens of evidence so far.
    """

    def __init__(self, count: int, forgetting: float = FORGETTING) -> None:
        """Starts with equal weights."""
        self.seen = 0
        self._forgetting = forgetting
        self._logs = np.zeros(count)

    @property
    def weights(self) -> FloatArray:
        """Weights of the mixture, summing to 1, shape (m,)."""
        shares = np.exp(self._logs - self._logs.max())
        result: FloatArray = shares / shares.sum()
        return result

    def observe(self, logps: FloatArray) -> None:
        """Takes in the log-probability that each combination gave to what came, shape (m,)."""
        self._logs = self._forgetting * self._logs + logps
        # Only differences count; small numbers stay exact over a long text.
        self._logs -= self._logs.max()
        self.seen += 1
