"""What a method chooses among: tokens of the leading model with their log-probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capt_local.decoding.combine import FloatArray
from capt_local.tokenization.vocabulary import IntArray

Row = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Choices:
    """A normalised distribution over the tokens of the leading model, in nats.

    Attributes:
        tokens: in the order in which the method weighs them, so that the first of equals wins; a
            token may come more than once (UniTE: two strings that begin with it), shape (n,).
        logp: log-probability of each, shape (n,).
        outside: what any other token has over its log-probability under the leading model.
            -inf: such a token cannot come, as when generating. Finite: the form for scoring.
    """

    tokens: IntArray
    logp: FloatArray
    outside: float = -math.inf

    def __post_init__(self) -> None:
        """Refuses what is no distribution."""
        if not len(self.tokens) or self.tokens.shape != self.logp.shape:
            raise ValueError("there is not one log-probability for each of one or more tokens")

    @property
    def best(self) -> int:
        """The token that is emitted at temperature 0: of the likeliest entry, the first of equals.

        Entries are compared one by one, as published, not the sums over a token.
        """
        return int(self.tokens[np.argmax(self.logp)])

    def merged(self) -> Choices:
        """The same distribution with each token once, ascending."""
        tokens, places = np.unique(self.tokens, return_inverse=True)
        logp = np.full(len(tokens), -np.inf)
        np.logaddexp.at(logp, places, self.logp)
        return Choices(tokens, logp, self.outside)

    def token_logp(self, token: int, own: float) -> float:
        """Log-probability of any token.

        Args:
            token: of the leading model.
            own: its log-probability under the leading model.
        """
        entries = self.logp[self.tokens == token]
        if not len(entries):
            return own + self.outside
        return float(np.logaddexp.reduce(entries))


def log_softmax(logits: Row | FloatArray) -> FloatArray:
    """Log-probabilities over the whole row, in double precision; the same shape."""
    row = logits.astype(np.float64)
    row -= row.max()
    row -= np.log(np.exp(row).sum())
    return row


def top(logits: Row, count: int) -> list[int]:
    """The `count` likeliest tokens, likeliest first, the lowest id of equals first.

    (`torch.topk`, which the published code uses, leaves the order of equals open.)
    """
    count = min(count, len(logits))
    least = np.partition(logits, len(logits) - count)[len(logits) - count]
    reach = np.flatnonzero(logits >= least)
    order = np.argsort(-logits[reach], kind="stable")
    best: list[int] = reach[order[:count]].tolist()
    return best


def log_mass(logp: FloatArray) -> float:
    """Log of the probability of several tokens together."""
    return float(np.logaddexp.reduce(logp))
