"""Proxy tuning (Liu et al. 2024), for comparison: three models, one vocabulary."""

from __future__ import annotations

import numpy as np

from capt_local.decoding.methods.choices import Choices, Row, log_softmax


def proxy_tuning(target: Row, expert: Row, base: Row, alpha: float = 1.0) -> Choices:
    """softmax(l_T + alpha * (l_E - l_A)) over the whole vocabulary; it generates and scores.

    Args:
        target: logits, shape (vocabulary,).
        expert: logits over the same vocabulary.
        base: logits over the same vocabulary.
        alpha: weight of the contrast; published 1.

    Returns:
        Every token, ascending.
    """
    if not target.shape == expert.shape == base.shape:
        raise ValueError("proxy tuning needs one vocabulary for all three models")
    moved = target.astype(np.float64) + alpha * (expert.astype(np.float64) - base)
    return Choices(np.arange(len(target), dtype=np.int32), log_softmax(moved))
