"""Drawing a token from a distribution. Pure arrays, in llama.cpp's order of filters.

Repetition penalty, then top-k, top-p and min-p at temperature 1, then temperature.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from capt_local.decoding.options import SampleOptions
from capt_local.tokenization import BoolArray, FloatArray, IntArray


def penalised(
    tokens: IntArray, logp: FloatArray, recent: Sequence[int], options: SampleOptions
) -> FloatArray:
    """Log-scores with recent tokens made less likely (Keskar et al. 2019).

    Log-probabilities are never positive, so the penalty always multiplies: unlike the same penalty
    on logits, it cannot reward a repetition.
    """
    if options.repeat_penalty == 1.0 or not recent or not options.repeat_window:
        return logp
    repeated = np.isin(tokens, np.asarray(recent[-options.repeat_window :]))
    return np.where(repeated, logp * options.repeat_penalty, logp)


def filtered(scores: FloatArray, options: SampleOptions) -> npt.NDArray[np.intp]:
    """Indices of the log-scores, shape (n,), that top-k, top-p and min-p keep, likeliest first."""
    order = np.argsort(-scores, kind="stable")
    if options.top_k:
        order = order[: options.top_k]
    shares = np.exp(scores[order] - scores[order[0]])
    if options.top_p < 1.0:
        # The token that crosses top-p is kept, so the sum before each token is compared.
        before = (np.cumsum(shares) - shares) / shares.sum()
        keep = int(np.count_nonzero(before < options.top_p))
        order, shares = order[:keep], shares[:keep]
    if options.min_p > 0.0:
        order = order[shares >= options.min_p]
    return order


def likeliest(
    tokens: IntArray,
    logp: FloatArray,
    recent: Sequence[int],
    options: SampleOptions,
    mask: BoolArray | None = None,
) -> int:
    """The index of the likeliest token after the penalty; see `choose`."""
    scores = penalised(tokens, logp, recent, options)
    return int((scores if mask is None else np.where(mask, scores, -np.inf)).argmax())


def choose(
    tokens: IntArray,
    logp: FloatArray,
    recent: Sequence[int],
    options: SampleOptions,
    rng: np.random.Generator,
    mask: BoolArray | None = None,
) -> int:
    """Samples the next token; at temperature 0 the likeliest one (ties: the lowest id).

    Args:
        tokens: ascending ids, shape (n,).
        logp: their log-probabilities, shape (n,).
        recent: tokens of the text so far, oldest first.
        options: temperature, filters and penalty.
        rng: advanced by one draw, unless the temperature is 0.
        mask: which tokens may be drawn, at least one, shape (n,); None: all.

    Returns:
        The index of the chosen token in `tokens`.
    """
    if options.temperature == 0.0:
        return likeliest(tokens, logp, recent, options, mask)
    if mask is not None:
        places = np.flatnonzero(mask)
        return int(places[choose(tokens[places], logp[places], recent, options, rng)])
    scores = penalised(tokens, logp, recent, options)
    order = filtered(scores, options)
    shares = np.exp((scores[order] - scores[order[0]]) / options.temperature)
    edges = np.cumsum(shares)
    place = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
    return int(order[min(place, len(order) - 1)])
