"""UniTE: the union of the top k of two models (Yao et al. 2025), for comparison.

Followed is the authors' `unite2.py`, as the authors of CAPT took it over for their comparison of a
target with an expert. The base takes no part.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from capt_local.alignment.paper import TokenStrings
from capt_local.decoding.combine import FloatArray
from capt_local.decoding.methods.choices import Choices, Row, log_mass, log_softmax, top
from capt_local.errors import UsageError
from capt_local.tokenization.vocabulary import IntArray


class Unite:
    """The mean of two softmaxes over the union of the strings of both models' top k.

    Args:
        target: strings of the model whose tokens are emitted.
        expert: strings of the other model.
        k: how many of each model's likeliest tokens are joined; published 10.
    """

    def __init__(self, target: TokenStrings, expert: TokenStrings, k: int = 10) -> None:
        """Keeps the strings; the mapping grows with the strings that are met."""
        if k < 1:
            raise UsageError(f"The number of candidates of a model, {k}, is below 1.")
        self._target = target
        self._expert = expert
        self._k = k

    def generating(self, target: Row, expert: Row) -> Choices:
        """The published distribution; nothing outside the union can come.

        A string that is no token of the target emits its first sub-token there, and the expert
        reads on from that.

        Args:
            target: logits, shape (target vocabulary,).
            expert: logits, shape (expert vocabulary,).

        Returns:
            One entry for each string, the target's own in its order, then the expert's.
        """
        own = {self._target.key(token): token for token in top(target, self._k)}
        other = {self._expert.key(token): token for token in top(expert, self._k)}
        union = {**own, **other}
        tokens, first = _entries(self._target, target, own, union)
        _pieces, second = _entries(self._expert, expert, other, union)
        return Choices(tokens, np.logaddexp(first, second) - np.log(2.0))

    def scoring(self, target: Row, expert: Row) -> Choices:
        """The form for likelihoods: the union shares what the target gives to its tokens.

        Every other token keeps the target's probability. This is an addition: the published
        distribution gives 0 to most texts.
        """
        made = self.generating(target, expert).merged()
        share = log_mass(log_softmax(target)[made.tokens])
        return Choices(made.tokens, made.logp + share, outside=0.0)


def _entries(
    strings: TokenStrings, logits: Row, own: Mapping[str, int], union: Mapping[str, int]
) -> tuple[IntArray, FloatArray]:
    """A model's piece for each string of the union, and the log-softmax of their logits.

    Where a byte-level model has no token for a string and the first sub-token is there already,
    the string gets the logit 0; a SentencePiece model gives it the sub-token's logit once more.
    """
    taken = set(own.values())
    tokens = np.empty(len(union), dtype=np.int32)
    values = np.empty(len(union), dtype=np.float32)
    for place, key in enumerate(union):
        token = own[key] if key in own else strings.piece(key)
        repeated = key not in own and not strings.spaced and token in taken
        taken.add(token)
        tokens[place] = token
        values[place] = 0.0 if repeated else logits[token]
    return tokens, log_softmax(values)
