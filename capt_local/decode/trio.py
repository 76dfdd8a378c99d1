"""The three models at one place of one text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capt_local.decode.cached import CachedModel
from capt_local.decode.combine import Candidates, FloatArray, combine, contrast, plausible
from capt_local.decode.evidence import Evidence
from capt_local.decode.options import CombineOptions
from capt_local.decode.proxy import Proxy
from capt_local.errors import ContextOverflow
from capt_local.prompt.messages import Prompt
from capt_local.vocab.vocabulary import IntArray


@dataclass(frozen=True, slots=True)
class Distribution:
    """What may come next.

    Attributes:
        candidates: of the target, with the target's own log-probabilities.
        contrast: of each candidate, shape (n,).
        logp: log-probability of each candidate under the combination, shape (n,).
        row: the target's logits, shape (vocabulary,); valid until the trio advances.
    """

    candidates: Candidates
    contrast: FloatArray
    logp: FloatArray
    row: npt.NDArray[np.float32]

    def token_logp(self, token: int, alphas: Sequence[float], weights: FloatArray) -> float:
        """Log-probability of any token of the vocabulary under the combination, in nats."""
        place = int(np.searchsorted(self.candidates.tokens, token))
        if place < len(self.logp) and int(self.candidates.tokens[place]) == token:
            return float(self.logp[place])
        outside = Candidates(
            np.append(self.candidates.tokens, np.int32(token)),
            np.append(self.candidates.logp, float(self.row[token]) - self.candidates.log_total),
            0.0,
            self.candidates.log_total,
        )
        share = max(self.candidates.rest - float(np.exp(outside.logp[-1])), 0.0)
        outside = Candidates(outside.tokens, outside.logp, share, outside.log_total)
        return float(combine(outside, np.append(self.contrast, 0.0), alphas, weights)[-1])


class Trio:
    """A target, and an expert and a base that follow its text.

    Args:
        target: the model whose tokens are chosen, and what it has seen.
        proxies: expert and base, in this order, or nothing: then the target answers alone.
        options: the weight of the contrast.

    Attributes:
        cached: the target and what it has seen.
        tokens: the target's tokens, prompt and answer.
        alphas: the weights of the contrast that are mixed.
        weights: of the mixture, summing to 1.
    """

    def __init__(
        self,
        target: CachedModel,
        proxies: Sequence[Proxy] = (),
        options: CombineOptions | None = None,
    ) -> None:
        """Starts without a text."""
        self.cached = target
        self.proxies = tuple(proxies)
        self.options = options or CombineOptions()
        self.tokens: list[int] = []
        self._lead = b""
        self._row: npt.NDArray[np.float32] | None = None
        self.configure(self.options)

    def configure(self, options: CombineOptions) -> None:
        """Sets the weight of the contrast; without evidence the grid is weighed equally."""
        fixed = options.alpha
        self.options = options
        self.alphas: tuple[float, ...] = options.grid if fixed is None else (fixed,)
        self.weights: FloatArray = np.full(len(self.alphas), 1.0 / len(self.alphas))

    def start(self, prompts: Mapping[str, Prompt], reserve: int = 1) -> None:
        """Takes a prompt; nothing is decoded before it is known to fit into all contexts.

        Args:
            prompts: by role.
            reserve: tokens that must be left for the answer.

        Raises:
            ContextOverflow: with the counts of every model.
        """
        self._check_fit(prompts, reserve)
        self.tokens = list(prompts[self.cached.role].tokens)
        self._lead = prompts[self.cached.role].lead
        self._row = None
        self.configure(self.options)
        for proxy in self.proxies:
            proxy.start(prompts[proxy.cached.role])

    def keep_row(self, row: npt.NDArray[np.float32]) -> None:
        """Takes the logits that follow all tokens (a view, valid until the target moves on)."""
        self._row = row

    def settle(self) -> None:
        """Brings all models to the text."""
        if self._row is None:
            self._row = self.cached.follow(self.tokens, 1)[0]
        for proxy in self.proxies:
            proxy.settle()

    def distribution(self) -> Distribution:
        """The combined distribution over what may come next; brings the models there first."""
        self.settle()
        assert self._row is not None
        candidates = plausible(self._row, self.options.plausibility)
        shift = self.contrast(candidates)
        logp = combine(candidates, shift, self.alphas, self.weights)
        return Distribution(candidates, shift, logp, self._row)

    def contrast(self, candidates: Candidates) -> FloatArray:
        """logp_expert - logp_base of each candidate at the present place, shape (n,)."""
        if not self.proxies or len(candidates.tokens) == 1:
            return np.zeros(len(candidates.tokens))
        events = self.events(candidates.tokens, start=bool(self._lead))
        said = (
            proxy.probability(wanted) for proxy, wanted in zip(self.proxies, events, strict=True)
        )
        return self.compare(events, *said)

    def events(self, tokens: IntArray, *, start: bool = False) -> list[IntArray]:
        """The events of target tokens for each proxy; see `Alignment.events`."""
        return [proxy.alignment.events(tokens, start=start) for proxy in self.proxies]

    def compare(
        self, events: Sequence[IntArray], expert: FloatArray, base: FloatArray
    ) -> FloatArray:
        """The contrast from what both proxies give to events, shape (n,)."""
        has_event = np.logical_and.reduce([wanted >= 0 for wanted in events])
        floor = max(proxy.alignment.floor for proxy in self.proxies)
        return contrast(expert, base, has_event, floor)

    def said_by_proxies(self, token: int) -> tuple[float, float] | None:
        """logp_expert and logp_base of a token's event at the present place, in nats.

        None without proxies, or where the token has no event. Their difference is the contrast.
        """
        if not self.proxies:
            return None
        events = self.events(np.asarray([token], dtype=np.int32), start=bool(self._lead))
        if any(wanted[0] < 0 for wanted in events):
            return None
        floor = max(proxy.alignment.floor for proxy in self.proxies)
        expert, base = (
            float(np.log(proxy.probability(wanted)[0] + floor))
            for proxy, wanted in zip(self.proxies, events, strict=True)
        )
        return expert, base

    def observe(self, evidence: Evidence) -> None:
        """Takes over the weights that the evidence gives."""
        self.alphas, self.weights = evidence.alphas, evidence.weights

    def advance(self, token: int) -> None:
        """Goes one token on. The models decode it when the next distribution is asked for."""
        piece = self.piece(token)
        self.tokens.append(token)
        self._row = None
        self._lead = b""
        for proxy in self.proxies:
            proxy.append(token, piece)

    def piece(self, token: int) -> bytes:
        """What a token adds to the answer, without a space that the tokenizer puts in front."""
        return self.cached.model.vocabulary.text((token,)).removeprefix(self._lead)

    @property
    def models(self) -> tuple[CachedModel, ...]:
        """The target and the proxies."""
        return (self.cached, *(proxy.cached for proxy in self.proxies))

    @property
    def room(self) -> int:
        """Tokens that still fit into the fullest context."""
        own = self.cached.model.context_limit - len(self.tokens)
        return min([own, *(proxy.room for proxy in self.proxies)])

    def _check_fit(self, prompts: Mapping[str, Prompt], reserve: int) -> None:
        counts = {each.role: len(prompts[each.role].tokens) for each in self.models}
        limits = {each.role: each.model.context_limit for each in self.models}
        if any(counts[role] + reserve > limits[role] for role in counts):
            raise ContextOverflow(counts, min(limits.values()), reserve)
