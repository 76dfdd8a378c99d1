"""Weights of the grid of alphas from the evidence of a text: Bayesian model averaging.

Each alpha gives a distribution; its weight is proportional to the probability that it gave to the
text so far. Over any text the mixture is then within log(m) nats of the best of m alphas in
hindsight, so that with alpha = 0 among them it can hardly be worse than the target alone. A slow
forgetting gives that bound up for a text that changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from capt_local.decode.combine import Candidates, FloatArray, tilt

FORGETTING = 0.98


class Evidence:
    """Collects how well each alpha predicts a text.

    Args:
        alphas: the grid, m weights of the contrast.
        forgetting: factor on all earlier evidence at each token; 1 forgets nothing.

    Attributes:
        seen: tokens of evidence so far.
    """

    def __init__(self, alphas: Sequence[float], forgetting: float = FORGETTING) -> None:
        """Starts with equal weights."""
        self.alphas = tuple(alphas)
        self.seen = 0
        self._forgetting = forgetting
        self._logs = np.zeros(len(self.alphas))

    @property
    def weights(self) -> FloatArray:
        """Weights of the mixture, summing to 1, shape (m,)."""
        shares = np.exp(self._logs - self._logs.max())
        result: FloatArray = shares / shares.sum()
        return result

    def observe(self, candidates: Candidates, shift: FloatArray, token: int) -> None:
        """Takes in that `token` came where the target had these candidates.

        Args:
            candidates: of the target at that place.
            shift: their contrasts, shape (n,).
            token: of the target; one that is not a candidate got no contrast from any alpha.
        """
        place = int(np.searchsorted(candidates.tokens, token))
        known = place < len(candidates.tokens) and int(candidates.tokens[place]) == token
        own = float(shift[place]) if known else 0.0
        gained = np.asarray(self.alphas) * own - np.log(tilt(candidates, shift, self.alphas)[1])
        self._logs = self._forgetting * self._logs + gained
        self.seen += 1
