"""The formulas of the combination. Pure arrays; everything is a natural logarithm.

Sources: Cross-Architecture Proxy Tuning (Ronaghi et al. 2026), proxy tuning (Liu et al. 2024),
the plausibility limit of contrastive decoding (Li et al. 2022), products of experts (Hinton 2002)
and Bayesian model averaging over their exponents.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from capt_local.decoding.options import CombineOptions, Method
from capt_local.tokenization import FloatArray, IntArray, Row

# If the largest logit is within +-60, single precision holds its exponential without a shift.
_MAX_EXPONENT = 60.0
# Numpy adds rows of a matrix four times faster than it sums one long row, and as exactly.
_WIDTH = 4096
# A mixture probability above this has lost no precision to underflow.
_LEAST = 1e-280


@dataclass(frozen=True, slots=True)
class Candidates:
    """The plausible tokens of the leading model.

    Attributes:
        tokens: ascending ids, shape (n,).
        logp: log-probability of each over the whole vocabulary, shape (n,).
        rest: total probability of all other tokens, which the combination leaves unchanged.
        log_total: logsumexp of the logits; a logit minus it is a log-probability.
    """

    tokens: IntArray
    logp: FloatArray
    rest: float
    log_total: float


def exponentials(logits: Row, top: float) -> tuple[Row, float]:
    """exp(logits - shift) of a row whose maximum is `top`, and the shift (0 if none is needed)."""
    # The row is long and rarely in the processor's cache, so an unneeded shift costs a whole pass.
    shift = 0.0 if abs(top) < _MAX_EXPONENT else top
    return np.exp(logits - np.float32(shift) if shift else logits), shift


def total(shares: Row) -> float:
    """The sum of a row."""
    whole = len(shares) - len(shares) % _WIDTH
    columns = np.add.reduce(shares[:whole].reshape(-1, _WIDTH))
    return float(np.add.reduce(columns)) + float(np.add.reduce(shares[whole:]))


def softmax(logits: Row) -> Row:
    """Probabilities of one row of logits, as a new array of the same shape."""
    row, _ = exponentials(logits, float(logits.max()))
    row *= np.float32(1.0 / total(row))
    return row


def plausible(logits: Row, plausibility: float) -> Candidates:
    """The tokens with p >= plausibility * max p (Li et al. 2022, eq. 3).

    Args:
        logits: shape (vocabulary,).
        plausibility: 0 (all tokens) to 1 (the likeliest alone).
    """
    top = float(logits.max())
    shares, shift = exponentials(logits, top)
    log_total = shift + math.log(total(shares))
    if plausibility > 0.0:
        (tokens,) = (logits >= np.float32(top + math.log(plausibility))).nonzero()
    else:
        tokens = np.arange(len(logits))
    logp = logits.take(tokens).astype(np.float64)
    logp -= log_total
    rest = max(0.0, 1.0 - float(np.exp(logp).sum())) if len(tokens) < len(logits) else 0.0
    return Candidates(tokens.astype(np.int32), logp, rest, log_total)


class Products(NamedTuple):
    """Several distributions over the candidates.

    Attributes:
        logp: log-probabilities, shape (m, n).
        shares: the same as probabilities, shape (m, n).
    """

    logp: FloatArray
    shares: FloatArray


def products(candidates: Candidates, proxies: FloatArray, exponents: FloatArray) -> Products:
    """The distributions P_i proportional to T^a * E^b * A^-c, one for each row of exponents.

    (1, alpha, alpha) is CAPT with that alpha, (1, 0, 0) the target, (0, 1, 0) the expert restricted
    to plausible tokens. P_i redistributes the target's probability of the candidates among them;
    all other tokens keep the target's probability, so P_i is normalised over the vocabulary.

    Args:
        candidates: of the target.
        proxies: log-probabilities of expert, base, and further pairs, shape (k, n).
        exponents: a, b, -c, ... of each product, shape (m, 1 + k).
    """
    scores: FloatArray = exponents @ np.concatenate((candidates.logp[None], proxies))
    scores -= scores.max(axis=1, keepdims=True)
    shares = np.exp(scores)
    share = max(1.0 - candidates.rest, np.finfo(np.float64).tiny)
    factors = share / shares.sum(axis=1, keepdims=True)
    scores += np.log(factors)
    shares *= factors
    return Products(scores, shares)


def mixture(members: Products, weights: FloatArray) -> FloatArray:
    """Log sum_i w_i P_i, shape (n,), with weights of shape (m,) that sum to 1."""
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


@dataclass(frozen=True, slots=True)
class Distribution:
    """The distribution over the next token, normalised over the leading model's vocabulary.

    Attributes:
        candidates: of the leading model, with its own log-probabilities.
        contrast: sum over the pairs of logp_expert - logp_base of each, shape (n,); NaN where
            `proxies_skipped`.
        logp: log-probability of each candidate under the combination, shape (n,).
        row: the leading model's logits, shape (vocabulary,); valid until it advances.
        members: log-probabilities under each mixed product, shape (m, n).
        proxy_logprobs: under expert, base, ..., shape (k, n); k is 0 if the method has no
            log-probabilities of single proxies.
        outside: added to the leading model's log-probability of a token that is no candidate;
            -inf: such tokens have probability 0.
        proxies_skipped: whether the proxies did not run, since they could not change the choice,
            had no weight or, with `Speed.FAST`, had little effect.
    """

    candidates: Candidates
    contrast: FloatArray
    logp: FloatArray
    row: Row
    members: FloatArray
    proxy_logprobs: FloatArray
    outside: float = 0.0
    proxies_skipped: bool = False

    def token_logp(self, token: int) -> float:
        """Log-probability of any token of the vocabulary, in nats."""
        place = self._place(token)
        if place is not None:
            return float(self.logp[place])
        return float(self.row[token]) - self.candidates.log_total + self.outside

    def token_logps(self, tokens: IntArray) -> FloatArray:
        """Log-probabilities of any tokens, shape (n,), where the candidates ascend."""
        own = self.candidates
        places = np.minimum(np.searchsorted(own.tokens, tokens), len(own.tokens) - 1)
        inside = own.tokens[places] == tokens
        result: FloatArray = self.row[tokens].astype(np.float64) - own.log_total + self.outside
        result[inside] = self.logp[places[inside]]
        return result

    def gains(self, token: int) -> FloatArray:
        """A token's log-probability under each member, up to a common constant, shape (m,)."""
        place = self._place(token)
        if place is None:  # no candidate: the same under all members
            return np.zeros(len(self.members))
        return self.members[:, place]

    def _place(self, token: int) -> int | None:
        found = np.flatnonzero(self.candidates.tokens == token)
        return int(found[0]) if len(found) else None


class Contrast:
    """Products T^a E^b A^-c, one or a mixture: CAPT, or with no pairs the leading model alone.

    Args:
        options: exponents and plausibility.
        pairs: number of pairs of expert and base; 0 for the leading model alone.
        method: CAPT; EXPERT_LED for the same products over the expert's tokens, followed by target
            and base; or DUO for T^a E^b, without any base.
        answer: whether the text answers a chat turn; decides the default grid of exponents.
    """

    def __init__(
        self,
        options: CombineOptions,
        pairs: int,
        method: Method = Method.CAPT,
        *,
        answer: bool = False,
    ) -> None:
        self._plausibility = options.plausibility
        self._method = method
        self._seen: tuple[Row, Candidates] | None = None
        # `exponents` has c without its sign, as in T^a E^b A^-c. If the expert leads, target and
        # expert change places in each row.
        if method is Method.DUO:
            self.exponents = options.duo_rows()
            self._signed = np.array(self.exponents)[:, :2]
        else:
            answer = answer and method is Method.CAPT
            self.exponents = options.rows(pairs, answer=answer)
            self._signed = np.array(self.exponents) * np.array([1.0, *(1.0, -1.0) * pairs])
        if method is Method.EXPERT_LED:
            self._signed = self._signed[:, [1, 0, 2]]

    def candidates(self, row: Row) -> Candidates:
        """The plausible tokens of the leading model; the last row's result is cached."""
        if self._seen is None or self._seen[0] is not row:
            self._seen = row, plausible(row, self._plausibility)
        return self._seen[1]

    def certain(self, row: Row, weights: FloatArray) -> Distribution | None:
        """The distribution if only one token is plausible, else None; needs no proxies.

        Its contrast is NaN.
        """
        own = self.candidates(row)
        if len(own.tokens) > 1:
            return None
        # With one candidate the proxies' probabilities cancel in the normalisation, so any values
        # give bit for bit the distribution that running the proxies would give.
        anything = np.zeros((self._signed.shape[1] - 1, 1))
        return dataclasses.replace(
            self.combined(own, anything, row, weights),
            contrast=np.full(1, np.nan),
            proxy_logprobs=np.empty((0, 1)),
            proxies_skipped=True,
        )

    def combined(
        self, own: Candidates, proxy_logps: FloatArray, row: Row, weights: FloatArray
    ) -> Distribution:
        """The mixture, weights (m,), of products of `own` and the proxies' log-probs (k, n)."""
        members = products(own, proxy_logps, self._signed)
        experts, bases = np.add.reduce(proxy_logps[0::2]), np.add.reduce(proxy_logps[1::2])
        if self._method is Method.DUO:
            contrast = experts - own.logp
        else:
            leads = self._method is Method.EXPERT_LED
            contrast = own.logp - bases if leads else experts - bases
        return Distribution(
            own, contrast, mixture(members, weights), row, members.logp, proxy_logps
        )
