"""Answers of a prescribed form: the choice is kept to what may come next.

The form is asked as rarely as possible, since asking about a whole vocabulary takes longer than a
small model takes for a token: at temperature 0 about the likeliest token alone (and the target's
own, to tell whether the expert changed something), then about the plausible candidates. If none
of those may come, plausibility is taken among the tokens that may: the method is the same, on the
target's distribution without the others.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from capt_local.decode.model import Constraint
from capt_local.decode.options import SampleOptions
from capt_local.decode.rules import Distribution
from capt_local.decode.sample import likeliest
from capt_local.decode.trio import Trio
from capt_local.errors import ModelError
from capt_local.vocab.vocabulary import BoolArray


@dataclass(frozen=True, slots=True)
class Open:
    """What may be chosen.

    Attributes:
        here: the distribution.
        mask: which of its candidates, shape (n,); None: all that matter.
        alone: whether the leading model alone has a say.
    """

    here: Distribution
    mask: BoolArray | None = None
    alone: bool = False


class Gate:
    """Keeps the choices of one answer to a form.

    Args:
        constraint: at the beginning of the answer.
        options: how tokens are drawn.

    Attributes:
        beyond: steps at which no plausible token was allowed.
    """

    def __init__(self, constraint: Constraint, options: SampleOptions) -> None:
        """Has asked nothing yet."""
        self._constraint = constraint
        self._options = options
        self.beyond = 0

    @property
    def complete(self) -> bool:
        """Whether the answer has its form."""
        return self._constraint.complete

    def open(self, trio: Trio, here: Distribution) -> Open:
        """What may be chosen here.

        Raises:
            ModelError: the vocabulary has no token that may come.
        """
        tokens = here.candidates.tokens
        if self._options.temperature == 0.0:
            best = [
                likeliest(tokens, logp, trio.tokens, self._options)
                for logp in (here.logp, here.candidates.logp)
            ]
            if self._constraint.allowed(tokens[best]).all():
                return Open(here)
        mask = self._constraint.allowed(tokens)
        return Open(here, mask) if mask.any() else self._among_allowed(trio, here)

    def accept(self, token: int) -> None:
        """Goes one token on."""
        self._constraint.accept(token)

    def _among_allowed(self, trio: Trio, here: Distribution) -> Open:
        """The same method on the target's distribution over the allowed tokens alone."""
        vocabulary = trio.cached.model.vocabulary
        every = self._constraint.allowed(np.arange(len(vocabulary), dtype=np.int32))
        if not every.any():
            raise ModelError(
                f"The vocabulary of the {trio.cached.role} has no token for what the grammar "
                "wants here. Use a grammar of characters that it has."
            )
        self.beyond += not vocabulary.is_end[every].all()  # the end is no choice
        only = trio.distribution(only=every)
        # As probabilities of the whole distribution: all that was left out keeps its share.
        less = only.candidates.log_total - here.candidates.log_total
        more = less + here.outside if np.isfinite(here.outside) else less
        own = dataclasses.replace(
            only.candidates,
            logp=only.candidates.logp + less,
            log_total=here.candidates.log_total,
        )
        made = dataclasses.replace(only, candidates=own, logp=only.logp + more)
        return Open(made, every[own.tokens])
