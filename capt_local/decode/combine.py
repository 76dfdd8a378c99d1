"""The formulas of the combination. Pure arrays; everything is a natural logarithm.

Sources: Cross-Architecture Proxy Tuning (Ronaghi et al. 2026), proxy tuning (Liu et al. 2024),
the plausibility limit of contrastive decoding (Li et al. 2022), and Bayesian model averaging over
the weight of the contrast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capt_local.vocab.vocabulary import IntArray

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The target's plausible tokens.

    Attributes:
        tokens: ascending ids, shape (n,).
        logp: log-probability of each under the target, over its whole vocabulary, shape (n,).
        rest: probability of all other tokens together; they keep it, and get no contrast.
        log_total: logsumexp of the row, so that any logit minus it is a log-probability.
    """

    tokens: IntArray
    logp: FloatArray
    rest: float
    log_total: float


def plausible(logits: npt.NDArray[np.float32], plausibility: float) -> Candidates:
    """The tokens with p >= plausibility * max p (Li et al. 2022, eq. 3).

    Args:
        logits: of the target, shape (vocabulary,).
        plausibility: 0 (all tokens) to 1 (the likeliest alone).
    """
    top = logits.max()
    log_total = float(top) + float(np.log(np.exp(logits - top).sum(dtype=np.float64)))
    if plausibility > 0.0:
        tokens = np.flatnonzero(logits >= top + np.float32(np.log(plausibility)))
    else:
        tokens = np.arange(len(logits))
    logp = logits[tokens].astype(np.float64) - log_total
    rest = max(0.0, 1.0 - float(np.exp(logp).sum())) if len(tokens) < len(logits) else 0.0
    return Candidates(tokens.astype(np.int32), logp, rest, log_total)


def contrast(
    expert: FloatArray, base: FloatArray, has_event: npt.NDArray[np.bool_], floor: float
) -> FloatArray:
    """logp_expert - logp_base of each event, 0 where the token has none.

    Args:
        expert: probabilities, shape (n,).
        base: probabilities, shape (n,).
        has_event: shape (n,).
        floor: added to both, see `align.projection`.
    """
    return np.where(has_event, np.log((expert + floor) / (base + floor)), 0.0)


def tilt(
    candidates: Candidates, shift: FloatArray, alphas: Sequence[float]
) -> tuple[FloatArray, FloatArray]:
    """The factors exp(alpha * contrast), and what they make of the sum of the probabilities.

    Nothing overflows: the floor keeps a contrast within 88 nats, and an alpha is within 8.

    Args:
        candidates: of the target.
        shift: their contrasts, shape (n,).
        alphas: m weights of the contrast.

    Returns:
        Factors, shape (m, n); the sum over the vocabulary of p_target * factor, shape (m,).
    """
    factors = np.exp(np.multiply.outer(np.asarray(alphas, dtype=np.float64), shift))
    sums: FloatArray = factors @ np.exp(candidates.logp) + candidates.rest
    return factors, sums


def combine(
    candidates: Candidates, shift: FloatArray, alphas: Sequence[float], weights: FloatArray
) -> FloatArray:
    """The mixture sum_i w_i P_i with P_i proportional to p_target * exp(alpha_i * contrast).

    One alpha with weight 1 is CAPT with a fixed alpha. Together with the rest, which has
    probability sum_i w_i rest / Z_i, the result is normalised over the target's vocabulary.

    Args:
        candidates: of the target.
        shift: their contrasts, shape (n,).
        alphas: m weights of the contrast.
        weights: of the mixture, summing to 1, shape (m,).

    Returns:
        Log-probabilities of the candidates, shape (n,).
    """
    if not np.any(shift):
        return candidates.logp
    factors, sums = tilt(candidates, shift, alphas)
    mixed: FloatArray = candidates.logp + np.log((weights / sums) @ factors)
    return mixed
