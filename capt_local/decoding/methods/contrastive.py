"""Contrastive decoding (Li et al. 2022, O'Brien and Lewis 2023), for comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from capt_local.decoding.methods.choices import Choices, Row, log_mass, log_softmax
from capt_local.errors import UsageError


@dataclass(frozen=True, slots=True)
class Contrastive:
    """(1 + beta) * l_E - beta * l_A on the tokens with p_E >= plausibility * max p_E.

    l are logits; the expert leads and the base is the amateur, so the two share one vocabulary and
    the target takes no part. The formula and its constants are those of O'Brien and Lewis (2023);
    the plausibility limit is that of Li et al. (2022), whose own score is logp_E - logp_A.

    Attributes:
        beta: strength of the contrast; published 0.5.
        plausibility: alpha of the papers; published 0.1.
    """

    beta: float = 0.5
    plausibility: float = 0.1

    def __post_init__(self) -> None:
        """Refuses values without a meaning."""
        if not 0.0 <= self.beta <= 8.0:
            raise UsageError(f"A contrast of strength {self.beta} is not between 0 and 8.")
        if not 0.0 < self.plausibility <= 1.0:
            raise UsageError(f"A plausibility of {self.plausibility} is not above 0 and at most 1.")

    def generating(self, expert: Row, base: Row) -> Choices:
        """The softmax of the scores of the plausible tokens; nothing else can come.

        Args:
            expert: logits, shape (vocabulary,).
            base: logits over the same vocabulary.

        Returns:
            Ascending tokens of the expert.
        """
        if expert.shape != base.shape:
            raise ValueError("contrastive decoding needs one vocabulary for expert and base")
        # The cut is made in single precision, as in the papers' logits.
        least = expert.max() + np.float32(math.log(self.plausibility))
        tokens = np.flatnonzero(expert >= least).astype(np.int32)
        wide = expert[tokens].astype(np.float64), base[tokens].astype(np.float64)
        scores = (1.0 + self.beta) * wide[0] - self.beta * wide[1]
        return Choices(tokens, scores - log_mass(scores))

    def scoring(self, expert: Row, base: Row) -> Choices:
        """The form for likelihoods: plausible tokens share what the expert gives to them.

        Every other token keeps the expert's probability. This is an addition: the published
        distribution gives 0 to most texts.
        """
        made = self.generating(expert, base)
        share = log_mass(log_softmax(expert)[made.tokens])
        return Choices(made.tokens, made.logp + share, outside=0.0)
