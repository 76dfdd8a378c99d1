"""Cross-Architecture Proxy Tuning as published (Ronaghi et al. 2026), for comparison.

Followed is the authors' `proxy_tuning_client.py` (pull request 3913 of stanford-crfm/helm). What
it loses is told in docs/baselines.md, and is kept here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from capt_local.alignment.paper import TokenStrings
from capt_local.decoding.combine import FloatArray
from capt_local.decoding.methods.choices import Choices, Row, log_mass, log_softmax, top
from capt_local.errors import UsageError
from capt_local.tokenization.vocabulary import IntArray


@dataclass(frozen=True, slots=True)
class PaperOptions:
    """The constants of the published method.

    Attributes:
        alpha: weight of the contrast; published 1.
        k: how many of the target's likeliest tokens are compared; published 20.
    """

    alpha: float = 1.0
    k: int = 20

    def __post_init__(self) -> None:
        """Refuses values without a meaning."""
        if not -8.0 <= self.alpha <= 8.0:
            raise UsageError(f"An alpha of {self.alpha} is not between -8 and 8.")
        if self.k < 1:
            raise UsageError(f"The number of candidates, {self.k}, is below 1.")


class PaperCapt:
    """s(t) = logp_T(t) + alpha * (logp_E(m(t)) - logp_A(m(t))) over the target's top k.

    Log-probabilities are over each model's whole vocabulary; m(t) is `TokenStrings.piece`. There
    is no floor, no plausibility limit and no event for the end of an answer.

    Args:
        target: strings of the target.
        expert: strings of the expert.
        base: strings of the base; the published code looks them up apart from the expert's.
        options: alpha and k.
    """

    def __init__(
        self,
        target: TokenStrings,
        expert: TokenStrings,
        base: TokenStrings,
        options: PaperOptions | None = None,
    ) -> None:
        """Keeps the strings; the mapping grows with the candidates that are met."""
        self._target = target
        self._expert = expert
        self._base = base
        self._options = options or PaperOptions()

    def generating(self, target: Row, expert: Row, base: Row) -> Choices:
        """The softmax of s over the candidates; nothing else can come.

        Args:
            target: logits, shape (target vocabulary,).
            expert: logits, shape (expert vocabulary,).
            base: logits, shape (base vocabulary,).

        Returns:
            The candidates in the target's order; `best` is the published choice.
        """
        tokens, _own, scores = self._scores(target, expert, base)
        return Choices(tokens, scores - log_mass(scores))

    def scoring(self, target: Row, expert: Row, base: Row) -> Choices:
        """The form for likelihoods: other tokens keep the target's probability, uncontrasted.

        All is divided by the sum over the vocabulary. This is an addition: the published
        distribution gives 0 to most texts.
        """
        tokens, own, scores = self._scores(target, expert, base)
        rest = max(-math.expm1(log_mass(own)), 0.0)
        total = float(np.logaddexp(log_mass(scores), math.log(rest) if rest else -math.inf))
        return Choices(tokens, scores - total, -total).merged()

    def sharing(self, target: Row, expert: Row, base: Row) -> Choices:
        """Another form for likelihoods: the candidates share what the target gives to them.

        Every other token keeps the target's probability, as with UniTE and contrastive decoding. A
        contrast that is wrong can take from the other candidates, but not from all tokens, so
        this form is the kinder one where the contrasts are noisy (docs/baselines.md).
        """
        tokens, own, scores = self._scores(target, expert, base)
        return Choices(tokens, scores - log_mass(scores) + log_mass(own), outside=0.0).merged()

    def _scores(
        self, target: Row, expert: Row, base: Row
    ) -> tuple[IntArray, FloatArray, FloatArray]:
        """Candidates, their log-probabilities under the target, and s."""
        # Of two candidates with one key ("/n" and a newline) the less likely one overwrites the
        # other, in its place: a dictionary does here what it does in the published code.
        keys = {self._target.key(token): token for token in top(target, self._options.k)}
        tokens = np.array(list(keys.values()), dtype=np.int32)
        own = log_softmax(target)[tokens]
        said = [
            log_softmax(row)[[strings.piece(key) for key in keys]]
            for strings, row in ((self._expert, expert), (self._base, base))
        ]
        return tokens, own, own + self._options.alpha * (said[0] - said[1])
