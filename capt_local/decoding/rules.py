"""How what the models say at one place becomes one distribution: the methods."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from capt_local.alignment.projection import CandidateQuery
from capt_local.decoding.combine import (
    Candidates,
    FloatArray,
    logs,
    mixture,
    plausible,
    products,
)
from capt_local.decoding.follower import Follower
from capt_local.decoding.methods.choices import Choices, Row
from capt_local.decoding.options import CombineOptions, Powers
from capt_local.tokenization.vocabulary import IntArray


@dataclass(frozen=True, slots=True)
class Distribution:
    """What may come next, normalised over the vocabulary of the leading model.

    Attributes:
        candidates: of the leading model, with its own log-probabilities.
        contrast: sum over the pairs of logp_expert - logp_base of each, shape (n,); NaN where
            `gated`.
        logp: log-probability of each candidate under the combination, shape (n,).
        row: the leading model's logits, shape (vocabulary,); valid until it advances.
        members: log-probabilities under each combination that is mixed, shape (m, n).
        said: log-probabilities under expert, base, ..., shape (k, n); k is 0 where the method
            does not look at them one by one.
        outside: what any other token has over its log-probability under the leading model;
            -inf: it cannot come.
        gated: whether one token alone is plausible, so that the followers were not asked.
    """

    candidates: Candidates
    contrast: FloatArray
    logp: FloatArray
    row: npt.NDArray[np.float32]
    members: FloatArray
    said: FloatArray
    outside: float = 0.0
    gated: bool = False

    def place(self, token: int) -> int | None:
        """The place of a token among the candidates."""
        found = np.flatnonzero(self.candidates.tokens == token)
        return int(found[0]) if len(found) else None

    def token_logp(self, token: int) -> float:
        """Log-probability of any token of the vocabulary, in nats."""
        place = self.place(token)
        if place is not None:
            return float(self.logp[place])
        return float(self.row[token]) - self.candidates.log_total + self.outside

    def gains(self, token: int) -> FloatArray:
        """How much better than the worst each member predicted a token, shape (m,), in nats."""
        place = self.place(token)
        if place is None:  # to all of them the same
            return np.zeros(len(self.members))
        return self.members[:, place]


class Rule(Protocol):
    """A method: one distribution from the rows of all models.

    Attributes:
        powers: the combinations that are mixed, each with its exponents; empty where there is one.
    """

    powers: tuple[Powers, ...]

    def distribution(
        self, row: Row, followers: Sequence[Follower], weights: FloatArray, *, start: bool
    ) -> Distribution:
        """The distribution at the present place.

        Args:
            row: logits of the leading model.
            followers: expert, base, ... at the same text.
            weights: of the mixture, shape (m,).
            start: whether an answer begins whose leading space is the tokenizer's own.
        """
        ...


class Contrast:
    """Products T^a E^b A^-c, one or a mixture: CAPT, and the target alone where no proxy reads.

    Args:
        options: exponents and plausibility.
        pairs: number of pairs of expert and base.
        expert_leads: the same products over the tokens of the expert, followed by target and base.
    """

    def __init__(self, options: CombineOptions, pairs: int, *, expert_leads: bool = False) -> None:
        """Lays out the exponents."""
        self.options = options
        self.powers = options.rows(pairs)
        # The base's exponents are told as they are written, T^a E^b A^-c.
        signs = np.array([1.0, *(1.0, -1.0) * pairs])
        self._signed = np.array(self.powers) * signs
        self._expert_leads = expert_leads
        self._seen: tuple[Row, Candidates] | None = None
        if expert_leads:
            self._signed = self._signed[:, [1, 0, 2]]

    def distribution(
        self, row: Row, followers: Sequence[Follower], weights: FloatArray, *, start: bool
    ) -> Distribution:
        """See `Rule.distribution`."""
        own = self.candidates(row, followers)
        questions = self.questions(own, followers, start=start)
        said = [each.probability(questions[id(each.alignment)]) for each in followers]
        return self.combined(own, self.logs(own, followers, questions, said), row, weights)

    def sole(
        self, row: Row, followers: Sequence[Follower], weights: FloatArray
    ) -> Distribution | None:
        """The distribution where one token alone is plausible, whatever the followers say.

        Its contrast is not known then.
        """
        own = self.candidates(row, followers)
        if len(own.tokens) > 1:
            return None
        # What they say of a single token falls out when it is normalised. So anything will do, and
        # the numbers are to the last bit those of a step at which they are asked.
        anything = np.zeros((self._signed.shape[1] - 1, 1))
        return dataclasses.replace(
            self.combined(own, anything, row, weights),
            contrast=np.full(1, np.nan),
            said=np.empty((0, 1)),
            gated=True,
        )

    def candidates(self, row: Row, followers: Sequence[Follower]) -> Candidates:
        """The target's plausible tokens, as many as the alignments can compare.

        Asked twice about one array, as the gate and the step after it do, it looks once.
        """
        if self._seen is None or self._seen[0] is not row:
            most = [each.alignment.most for each in followers if each.alignment.most is not None]
            found = plausible(row, self.options.plausibility, min(most, default=None))
            self._seen = row, found
        return self._seen[1]

    def questions(
        self, own: Candidates, followers: Sequence[Follower], *, start: bool = False
    ) -> Mapping[int, CandidateQuery[Any]]:
        """One question for all followers that share an alignment, by its identity."""
        prior = np.exp(own.logp)
        return {
            id(alignment): alignment.query(own.tokens, prior, start=start)
            for alignment in {id(each.alignment): each.alignment for each in followers}.values()
        }

    def logs(
        self,
        own: Candidates,
        followers: Sequence[Follower],
        questions: Mapping[int, CandidateQuery[Any]],
        said: Sequence[FloatArray],
    ) -> FloatArray:
        """What the followers say about the candidates, as logarithms, shape (k, n)."""
        if not followers:
            return np.empty((0, len(own.tokens)))
        aligned = functools.reduce(
            np.logical_and, (question.aligned for question in questions.values())
        )
        return logs(said, aligned, own.logp, max(each.alignment.floor for each in followers))

    def combined(
        self, own: Candidates, said: FloatArray, row: Row, weights: FloatArray
    ) -> Distribution:
        """The mixture of the products."""
        members = products(own, said, self._signed)
        experts, bases = np.add.reduce(said[0::2]), np.add.reduce(said[1::2])
        contrast = own.logp - bases if self._expert_leads else experts - bases
        return Distribution(own, contrast, mixture(members, weights), row, members.logp, said)


class Published:
    """A method of the papers: all that it needs are the rows.

    Args:
        choices: from the logits of the leading model and of its followers.
    """

    powers: tuple[Powers, ...] = ()

    def __init__(self, choices: Callable[..., Choices]) -> None:
        """Keeps the function."""
        self._choices = choices

    def distribution(
        self, row: Row, followers: Sequence[Follower], weights: FloatArray, *, start: bool
    ) -> Distribution:
        """See `Rule.distribution`."""
        made = self._choices(row, *(each.logits for each in followers))
        own = _as_candidates(row, made.tokens)
        count = len(made.tokens)
        nothing = np.empty((0, count))
        return Distribution(
            own, np.zeros(count), made.logp, row, made.logp[None, :], nothing, made.outside
        )


def _as_candidates(row: Row, tokens: IntArray) -> Candidates:
    every = plausible(row, 0.0)
    logp = every.logp[tokens]
    rest = max(0.0, 1.0 - float(np.exp(every.logp[np.unique(tokens)]).sum()))
    return Candidates(tokens, logp, rest, every.log_total)
