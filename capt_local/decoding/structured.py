"""Structured answers: sampling restricted to the tokens that a grammar allows.

A mask over a whole vocabulary can take longer than a small model takes for a token, so it is made
as rarely as possible: at temperature 0 the likeliest token alone is checked first (and the
target's own, to see whether the expert changed something), then the plausible candidates. If the
grammar allows none of those, plausibility is applied among the tokens that it allows: the same
method, on the target's distribution without the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from capt_local.decoding.options import SampleOptions
from capt_local.decoding.rules import Distribution
from capt_local.decoding.sample import likeliest
from capt_local.errors import ModelError
from capt_local.vocab.vocabulary import BoolArray, IntArray, Vocabulary


class Constraint(Protocol):
    """What may come next in an answer, in the tokens of one model."""

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        ...

    def allowed(self, tokens: Sequence[int] | IntArray) -> BoolArray:
        """Which of these tokens may come next, shape (n,).

        End tokens may where the answer is complete; other control tokens never.
        """
        ...

    def accept(self, token: int) -> None:
        """Goes one token on. The token is allowed and is no end token."""
        ...


@dataclass(frozen=True, slots=True)
class MaskedDistribution:
    """A distribution and the part of it that may be chosen.

    Attributes:
        here: the distribution.
        mask: which of its candidates may be chosen, shape (n,); None: all that matter.
        alone: whether the distribution is that of the leading model alone.
    """

    here: Distribution
    mask: BoolArray | None = None
    alone: bool = False


class GrammarSampler:
    """Restricts the choices of one answer to what a grammar allows.

    Args:
        constraint: at the beginning of the answer.
        vocabulary: of the leading model.
        options: how tokens are drawn.

    Attributes:
        implausible_steps: steps at which the grammar allowed no plausible token.
    """

    def __init__(
        self, constraint: Constraint, vocabulary: Vocabulary, options: SampleOptions
    ) -> None:
        self._constraint = constraint
        self._vocabulary = vocabulary
        self._options = options
        self.implausible_steps = 0

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        return self._constraint.complete

    def mask(
        self,
        here: Distribution,
        history: Sequence[int],
        restricted: Callable[[BoolArray], Distribution],
    ) -> MaskedDistribution:
        """What may be chosen here.

        Args:
            here: the distribution over all plausible candidates.
            history: tokens so far, for the repetition penalty.
            restricted: the distribution at the same place over the tokens that a mask of shape
                (vocabulary,) allows.

        Raises:
            ModelError: the vocabulary has no token that may come.
        """
        tokens = here.candidates.tokens
        if self._options.temperature == 0.0:
            best = [
                likeliest(tokens, logp, history, self._options)
                for logp in (here.logp, here.candidates.logp)
            ]
            if self._constraint.allowed(tokens[best]).all():
                return MaskedDistribution(here)
        mask = self._constraint.allowed(tokens)
        return MaskedDistribution(here, mask) if mask.any() else self._widened(here, restricted)

    def accept(self, token: int) -> None:
        """Goes one token on."""
        self._constraint.accept(token)

    def _widened(
        self, here: Distribution, restricted: Callable[[BoolArray], Distribution]
    ) -> MaskedDistribution:
        """The same method on the target's distribution over the allowed tokens alone."""
        every = self._constraint.allowed(np.arange(len(self._vocabulary), dtype=np.int32))
        if not every.any():
            raise ModelError(
                "The vocabulary has no token for what the grammar requires here. Use a grammar of "
                "characters that the model has."
            )
        self.implausible_steps += not self._vocabulary.is_end[every].all()  # the end is no choice
        only = restricted(every)
        # As probabilities of the whole distribution: all that was left out keeps its share.
        less = only.candidates.log_total - here.candidates.log_total
        more = less + here.outside if np.isfinite(here.outside) else less
        own = dataclasses.replace(
            only.candidates,
            logp=only.candidates.logp + less,
            log_total=here.candidates.log_total,
        )
        made = dataclasses.replace(only, candidates=own, logp=only.logp + more)
        return MaskedDistribution(made, every[own.tokens])
