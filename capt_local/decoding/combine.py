"""The formulas of the combination. Pure arrays; everything is a natural logarithm.

Sources: Cross-Architecture Proxy Tuning (Ronaghi et al. 2026), proxy tuning (Liu et al. 2024),
the plausibility limit of contrastive decoding (Li et al. 2022), products of experts (Hinton 2002)
and Bayesian model averaging over their exponents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from capt_local.tokenization.vocabulary import BoolArray, IntArray

FloatArray = npt.NDArray[np.float64]
SingleArray = npt.NDArray[np.float32]

# Between exp(-60) and exp(60) a row of single precision keeps all that matters of its largest.
_SAFE = 60.0
# Numpy adds rows of a matrix four times faster than it sums one long row, and as exactly.
_WIDTH = 4096
# A sum of probabilities above this has lost nothing to underflow.
_LEAST = 1e-280


@dataclass(frozen=True, slots=True)
class Candidates:
    """The target's plausible tokens.

    Attributes:
        tokens: ascending ids, shape (n,).
        logp: log-probability of each under the target, over its whole vocabulary, shape (n,).
        rest: probability of all other tokens together; they keep it.
        log_total: logsumexp of the row, so that any logit minus it is a log-probability.
    """

    tokens: IntArray
    logp: FloatArray
    rest: float
    log_total: float


def exponentials(logits: SingleArray, top: float) -> tuple[SingleArray, float]:
    """The exponentials of a row, all divided by exp(shift), and the shift.

    Args:
        logits: shape (vocabulary,).
        top: the largest of them.
    """
    # The row is long and rarely in the processor's cache: where none is needed, no pass to shift.
    shift = 0.0 if abs(top) < _SAFE else top
    return np.exp(logits - np.float32(shift) if shift else logits), shift


def total(shares: SingleArray) -> float:
    """The sum of a row."""
    whole = len(shares) - len(shares) % _WIDTH
    columns = np.add.reduce(shares[:whole].reshape(-1, _WIDTH))
    return float(np.add.reduce(columns)) + float(np.add.reduce(shares[whole:]))


def plausible(logits: SingleArray, plausibility: float, most: int | None = None) -> Candidates:
    """The tokens with p >= plausibility * max p (Li et al. 2022, eq. 3).

    Args:
        logits: of the target, shape (vocabulary,).
        plausibility: 0 (all tokens) to 1 (the likeliest alone).
        most: the likeliest of these, if there are more.
    """
    top = float(logits.max())
    shares, shift = exponentials(logits, top)
    log_total = shift + math.log(total(shares))
    if plausibility > 0.0:
        (tokens,) = (logits >= np.float32(top + math.log(plausibility))).nonzero()
    else:
        tokens = np.arange(len(logits))
    if most is not None and len(tokens) > most:
        tokens = np.sort(tokens[np.argsort(-logits[tokens], kind="stable")[:most]])
    logp = logits.take(tokens).astype(np.float64)
    logp -= log_total
    rest = max(0.0, 1.0 - float(np.exp(logp).sum())) if len(tokens) < len(logits) else 0.0
    return Candidates(tokens.astype(np.int32), logp, rest, log_total)


def logs(
    said: Sequence[FloatArray], has_say: BoolArray, own: FloatArray, floor: float
) -> FloatArray:
    """Log-probabilities of the candidates under each proxy.

    Where the proxies have no say on a token (a control token of the target), they are taken to
    say what the target says: its contrast is 0.

    Args:
        said: probabilities under k proxies, each of shape (n,).
        has_say: shape (n,).
        own: log-probabilities under the target, shape (n,).
        floor: added to the probabilities, see `alignment.projection.FLOOR`.

    Returns:
        Shape (k, n).
    """
    rows = np.array(said).reshape(-1, len(own))
    rows += floor
    np.log(rows, out=rows)
    return rows if has_say.all() else np.where(has_say, rows, own)


class Products(NamedTuple):
    """Several distributions over the candidates.

    Attributes:
        logp: log-probabilities, shape (m, n).
        shares: the same as probabilities, shape (m, n).
    """

    logp: FloatArray
    shares: FloatArray


def products(candidates: Candidates, said: FloatArray, powers: FloatArray) -> Products:
    """The distributions P_i proportional to T^a * E^b * A^-c, one for each row of exponents.

    (1, alpha, alpha) is CAPT with that alpha, (1, 0, 0) the target, (0, 1, 0) the expert where the
    target finds it plausible. The candidates share what the target gives to them; every other
    token keeps the target's probability, so each P_i is normalised over the vocabulary.

    Args:
        candidates: of the target.
        said: log-probabilities of expert, base, and further pairs, shape (k, n).
        powers: the exponents a, b, -c, ... of each product, shape (m, 1 + k).
    """
    scores: FloatArray = powers @ np.concatenate((candidates.logp[None], said))
    scores -= scores.max(axis=1, keepdims=True)
    shares = np.exp(scores)
    share = max(1.0 - candidates.rest, np.finfo(np.float64).tiny)
    factors = share / shares.sum(axis=1, keepdims=True)
    scores += np.log(factors)
    shares *= factors
    return Products(scores, shares)


def mixture(members: Products, weights: FloatArray) -> FloatArray:
    """Log sum_i w_i P_i.

    Args:
        members: the P_i.
        weights: summing to 1, shape (m,).

    Returns:
        Shape (n,).
    """
    if len(weights) == 1:
        only: FloatArray = members.logp[0]
        return only
    mixed: FloatArray = weights @ members.shares
    if mixed.min() > _LEAST:
        return np.log(mixed, out=mixed)
    with np.errstate(divide="ignore"):  # a weight may be 0
        scores = members.logp + np.log(weights)[:, None]
    best = scores.max(axis=0)
    by_logs: FloatArray = best + np.log(np.exp(scores - best).sum(axis=0))
    return by_logs
