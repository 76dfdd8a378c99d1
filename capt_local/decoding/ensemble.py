"""The leading model (usually the target) and its proxies, all at the same position of a text.

`Ensemble.distribution` decodes the text in all models and combines their distributions.
`EnsembleBuilder` knows which models a method needs and how they are aligned.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from capt_local.alignment import TINY, Alignment, TargetEvents, fit
from capt_local.decoding.baselines import (
    Choices,
    TokenStrings,
    contrastive,
    paper_capt,
    proxy_tuning,
    safe,
    unite,
)
from capt_local.decoding.combine import Candidates, Contrast, Distribution
from capt_local.decoding.options import (
    CombineOptions,
    Exponents,
    GenerateOptions,
    Method,
    Speed,
)
from capt_local.decoding.proxy import LogitsCache, Proxy, proxy_logps, queries
from capt_local.errors import ContextOverflow, UsageError
from capt_local.prompting.messages import Message, Prompt
from capt_local.tokenization import BoolArray, FloatArray, Row, TextTokenizer, common_length

_NOTHING = np.float32(1e4)  # nats below the smallest logit: probability 0, but finite
# From this weight of the target in the mixture on, the proxies are not run: they could change a
# probability by a thousandth at most.
TARGET_ALONE = 0.999
# Where `Speed.FAST` skips the proxies, chosen on validation text (docs/results.md).
SURE, MOVED = 0.8, 0.05
_FADING, _MAX_SKIPPED = 0.9, 8
# A published method: from the logits of the leading model and the others to its distribution; None
# stands for that of the leading model alone.
Published = Callable[..., Choices | None]


class SkipRule:
    """When `Speed.FAST` skips the proxies and uses the target's distribution alone.

    It does so where the target gives its likeliest token at least the probability `sure`, and
    while the proxies change the distribution by less than `moved` (total variation distance, a
    decaying average over the positions at which they ran); they run every few tokens in any case.
    """

    def __init__(self, sure: float = SURE, moved: float = MOVED) -> None:
        self._least = math.log(sure)
        self._limit = moved
        self.start(0)

    def start(self, place: int) -> None:
        """Resets the rule at a position (a number of tokens)."""
        self._moved, self._ran_at = 2 * self._limit, place

    def skips(self, own: Candidates, place: int) -> bool:
        """Whether the proxies are skipped after `place` tokens."""
        if own.logp.max() >= self._least:
            return True
        return self._moved < self._limit and place - self._ran_at < _MAX_SKIPPED

    def observe(self, here: Distribution, place: int) -> None:
        """Updates the average by the distribution after `place` tokens."""
        moved = 0.5 * float(np.abs(np.exp(here.logp) - np.exp(here.candidates.logp)).sum())
        self._moved = _FADING * self._moved + (1.0 - _FADING) * moved
        self._ran_at = place


class Ensemble:
    """See the module.

    Args:
        leader: the model whose vocabulary is sampled from, with its KV cache.
        proxies: expert and base, further pairs, or none: then the leader answers alone.
        options: exponents, plausibility and evidence.
        method: which products; see `combine.Contrast`.
        published: a published method to use instead of products.

    Attributes:
        leader, proxies, options, published: see above.
        tokens: the leader's tokens, prompt and answer.
        contrast: the products.
        exponents: of the mixed products; empty for a method without products.
        weights: of the mixture, summing to 1, one for each of `exponents`.
        target_alone: whether the proxies have no weight and do not run.
        skip_certain: whether to skip the proxies where only one token is plausible; their
            probabilities are unknown there, and they decode the tokens later.
        skip_rule: further positions to skip, using the leader's distribution; None: none.
    """

    def __init__(
        self,
        leader: LogitsCache,
        proxies: Sequence[Proxy] = (),
        options: CombineOptions | None = None,
        method: Method = Method.CAPT,
        published: Published | None = None,
    ) -> None:
        self.leader = leader
        self.proxies = tuple(proxies)
        self.options = options or CombineOptions()
        self.published = published
        self.tokens: list[int] = []
        self.skip_certain = False
        self.skip_rule: SkipRule | None = None
        self._method = method
        self._leading_space = b""
        self._alone = Contrast(self.options, 0)
        self._reset_products(answer=False)

    def _reset_products(self, *, answer: bool) -> None:
        """Sets up the products of the method, with equal weights until there is evidence."""
        self.contrast = self._alone
        self.exponents: tuple[Exponents, ...] = ()
        if self.proxies and self.published is None:
            pairs = len(self.proxies) // 2
            self.contrast = Contrast(self.options, pairs, self._method, answer=answer)
            self.exponents = self.contrast.exponents
        count = max(len(self.exponents), 1)
        self.weights: FloatArray = np.full(count, 1.0 / count)
        self.target_alone = not self.proxies

    @property
    def mixes(self) -> bool:
        """Whether several products are mixed, with weights set by evidence."""
        return len(self.exponents) > 1

    def set_weights(self, weights: FloatArray) -> None:
        """Sets the mixture weights, and `target_alone` if the target has nearly all of it."""
        self.weights = weights
        if self._method is not Method.EXPERT_LED:
            only = [is_target_alone(exponents) for exponents in self.exponents]
            self.target_alone = float(weights[only].sum()) >= TARGET_ALONE

    def start(self, prompts: Mapping[str, Prompt], reserve: int = 1, *, exact: bool = True) -> None:
        """Sets the prompts, by role, after checking that they fit all contexts; decodes nothing.

        `reserve` tokens must be left for the answer; for `exact` see `LogitsCache`.

        Raises:
            ContextOverflow: with the counts of every model.
        """
        counts = {each.role: len(prompts[each.role].tokens) for each in self.models}
        limits = {each.role: each.model.context_limit for each in self.models}
        if any(counts[role] + reserve > limits[role] for role in counts):
            raise ContextOverflow(counts, min(limits.values()), reserve)
        own = prompts[self.leader.role]
        self.tokens = list(own.tokens)
        self._leading_space = own.leading_space
        if self.skip_rule is not None:
            self.skip_rule.start(len(self.tokens))
        for each in self.models:  # proxies decode the tokens they skipped in one batch
            each.exact = exact and (each is self.leader or self.skip_rule is None)
        self.leader.set_row_transform(None)
        # The single token before a text that is scored from its beginning is no turn.
        self._reset_products(
            answer=not own.continues_text and any(each.evidence for each in own.segments)
        )
        for proxy in self.proxies:
            proxy.start(prompts[proxy.cache.role])

    def leader_row(self) -> Row:
        """The leader's logits after the text: a view that its next decode overwrites."""
        return self.leader.logits_for(self.tokens)[0]

    def distribution(
        self, only: BoolArray | None = None, *, alone: bool = False, run_all: bool = False
    ) -> Distribution:
        """The distribution over the next token; decodes the missing tokens of all models first.

        Args:
            only: mask of allowed tokens, shape (vocabulary,); others get probability 0 from the
                leader. None: all are allowed.
            alone: the leader's own distribution; the proxies do not run.
            run_all: the proxies run even where the skip rule would skip them.
        """
        row = self.leader_row()
        if only is not None:  # not -inf, which an exponent of 0 would make NaN
            row = np.where(only, row, row.min() - _NOTHING)
        if alone or self.target_alone:
            found = self._leader_distribution(row)
            return found if alone or not self.proxies else _without_proxies(found)
        # At a full context no model is skipped, so that the answer ends at the same token.
        if only is None and self.tokens_left > 1:
            if self.skip_certain and self.published is None:
                certain = self.contrast.certain(row, self.weights)
                if certain is not None:
                    return certain
            if not run_all and self.skips_proxies:
                return _without_proxies(self._leader_distribution(row))
        # One after the other: running them in parallel on half of the cores each was slower.
        for proxy in self.proxies:
            proxy.sync()
        if self.published is not None:
            made = self.published(row, *(proxy.row for proxy in self.proxies))
            return self._leader_distribution(row) if made is None else made.over(row)
        own = self.contrast.candidates(row)
        by_alignment = queries(own, self.proxies, start=bool(self._leading_space))
        probabilities = [
            each.probability(by_alignment[id(each.alignment)]) for each in self.proxies
        ]
        logps = proxy_logps(own, self.proxies, by_alignment, probabilities)
        found = self.contrast.combined(own, logps, row, self.weights)
        if self.skip_rule is not None and only is None:
            self.skip_rule.observe(found, len(self.tokens))
        return found

    @property
    def skips_proxies(self) -> bool:
        """Whether the skip rule skips the proxies at the current position."""
        if self.skip_rule is None or self.target_alone:
            return False
        own = self.contrast.candidates(self.leader_row())
        return self.skip_rule.skips(own, len(self.tokens))

    def _leader_distribution(self, row: Row) -> Distribution:
        own = self.contrast.candidates(row)
        return self._alone.combined(own, np.empty((0, len(own.tokens))), row, np.ones(1))

    def advance(self, token: int) -> None:
        """Appends a token; the models decode it when the next distribution is needed."""
        self.advance_with_proxy_text(token, self.piece(token))

    def advance_with_proxy_text(
        self, token: int, read: bytes | None, before: Sequence[int] = ()
    ) -> None:
        """As `advance`, but the proxies get the bytes `read` instead, or with None nothing.

        `before` are earlier tokens whose bytes `read` holds too.
        """
        self.tokens.append(token)
        self._leading_space = b""
        if read is not None and not self.target_alone:
            for proxy in self.proxies:
                proxy.append(token, read, before)

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to the answer, without the tokenizer's leading space."""
        return self.leader.model.vocabulary.text((token,)).removeprefix(self._leading_space)

    @property
    def models(self) -> tuple[LogitsCache, ...]:
        """The leader and the proxies."""
        return (self.leader, *(proxy.cache for proxy in self.proxies))

    @property
    def used(self) -> dict[str, tuple[int, int]]:
        """Tokens of the text and of the context, of each model that runs, by role."""
        found = {self.leader.role: (len(self.tokens), self.leader.model.context_limit)}
        if not self.target_alone:
            for proxy in self.proxies:
                limit = proxy.cache.model.context_limit
                found[proxy.cache.role] = len(proxy.tokens), limit
        return found

    @property
    def tokens_left(self) -> int:
        """Tokens that still fit into the fullest context."""
        own = self.leader.model.context_limit - len(self.tokens)
        if self.target_alone:
            return own
        return min([own, *(proxy.tokens_left for proxy in self.proxies)])

    @property
    def can_draft(self) -> bool:
        """Whether all running models can rewind, so that a rejected draft can be dropped."""
        running = self.models[:1] if self.target_alone else self.models
        return all(each.model.can_rewind for each in running)

    def read_ahead(self, draft: Sequence[int], *, read: bool) -> None:
        """Decodes a draft after the text, in as few batches as possible per model.

        `read`: the leader has decoded the draft already, except its last token, and is left out.
        """
        path = [*self.tokens, *draft]
        if not read:
            self.leader.logits_for(path, len(draft) + 1)
        if self.target_alone:
            return
        plausible = draft[: self._plausible(path)]  # an implausible token will not be accepted
        if plausible:
            for proxy in self.proxies:
                proxy.read_ahead(plausible, self._pieces(plausible))

    def read_known_text(self, tokens: Sequence[int]) -> None:
        """Decodes the text, and some of the known tokens after it, where logits are missing."""
        if not self.leader.has(self.tokens):
            ahead = tokens[: self.leader.model.max_rows - 1]
            self.leader.logits_for([*self.tokens, *ahead], len(ahead) + 1)
        for proxy in self.proxies:
            cache, ahead = proxy.cache, tokens[: proxy.cache.model.max_rows]
            has_rows = cache.has(proxy.tokens, len(proxy.needed_positions()))
            if ahead and cache.model.can_rewind and not has_rows:
                proxy.read_ahead(ahead, self._pieces(ahead))

    def drop_read_ahead(self) -> None:
        """Rewinds the models to the end of the text."""
        texts = [self.tokens, *(proxy.tokens for proxy in self.proxies)]
        for cache, text in zip(self.models, texts, strict=True):
            if cache.model.can_rewind:
                cache.rewind(common_length(cache.tokens, text))

    def save(self) -> tuple[Any, ...]:
        """A snapshot of the text so far, for `restore`."""
        return [*self.tokens], self._leading_space, [proxy.context() for proxy in self.proxies]

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Goes back to a snapshot; the KV caches are rewound when they are next used."""
        tokens, self._leading_space, texts = saved
        self.tokens = [*tokens]
        for proxy, text in zip(self.proxies, texts, strict=True):
            proxy.restore(text)

    def _pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes that each of the next tokens adds to the answer."""
        text = self.leader.model.vocabulary.text
        return [self.piece(tokens[0]), *(text((token,)) for token in tokens[1:])]

    def _plausible(self, path: list[int]) -> int:
        """How many drafted tokens of `path`, from the end of the text on, are plausible."""
        limit, size = np.log(max(self.options.plausibility, TINY)), len(self.tokens)
        for place in range(size, len(path)):
            if not self.leader.has(path[:place]):
                return place - size
            row = self.leader.logits_for(path[:place])[0]
            if row[path[place]] < row.max() + limit:
                return place - size
        return len(path) - size


def _without_proxies(found: Distribution) -> Distribution:
    """Marks the leader's distribution as one for which the proxies did not run."""
    unknown = np.full(len(found.logp), np.nan)
    return dataclasses.replace(found, contrast=unknown, proxies_skipped=True)


def prompt_for_role(
    method: Method, role: str, prompt: str | Sequence[Message], *, raw: bool
) -> tuple[str | Sequence[Message], bool]:
    """The prompt of a role under a method, and whether it is raw (without a chat template)."""
    if raw or role == "target" or method is not Method.CAPT_PAPER_RAW:
        return prompt, raw
    if isinstance(prompt, str):
        return prompt, True
    return "\n\n".join(turn.content for turn in prompt), True


def is_target_alone(exponents: Exponents) -> bool:
    """Whether T^a E^b A^-c is T."""
    return exponents[0] == 1.0 and not any(exponents[1:])


def first_pair_notice(pairs: int) -> str:
    """The notice that a method for one pair uses the first of several."""
    return f"This method uses one pair of expert and base: the first of {pairs}."


class EnsembleBuilder:
    """Builds the ensemble of a method from loaded models. Alignment tables are built once.

    Args:
        caches: the models by role: target, expert, base, and expert-2, base-2, ... for further
            pairs.
        tokenizers: of the same models.
        hint: the error message of a missing model, by role.
    """

    def __init__(
        self,
        caches: Mapping[str, LogitsCache],
        tokenizers: Mapping[str, TextTokenizer],
        hint: Callable[[str], str],
    ) -> None:
        self._caches = dict(caches)
        self._tokenizers = dict(tokenizers)
        self._hint = hint
        self._events: dict[str, TargetEvents] = {}
        self._alignments: list[tuple[str, TextTokenizer, Alignment]] = []
        self._strings: dict[str, TokenStrings] = {}

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The roles of each pair of expert and base."""
        experts = [role for role in self._caches if role.startswith("expert")]
        return tuple((role, role.replace("expert", "base")) for role in experts)

    def notices(self, method: Method) -> list[str]:
        """Notices about models that a method does not use."""
        proxies = {"expert", "base"} & set(method.roles or ())
        return [first_pair_notice(len(self.pairs))] if proxies and len(self.pairs) > 1 else []

    def build(
        self,
        options: GenerateOptions,
        caches: Mapping[str, LogitsCache] | None = None,
        *,
        scoring: bool = False,
    ) -> Ensemble:
        """The models that a method needs, in their places.

        Args:
            options: the method and the weights.
            caches: other contexts of the same models, by role.
            scoring: the form of a published method that gives every token some probability,
                instead of the one that it generates with (docs/method.md).

        Raises:
            UsageError: the method needs a model that is not there, or one vocabulary where there
                are two.
        """
        method, combine, caches = options.method, options.combine, caches or self._caches
        roles = method.roles or ("target", *(role for pair in self.pairs for role in pair))
        if method is Method.CAPT:
            if len(roles) == 1:
                roles = ("target", "expert", "base")
            if not combine.mixes and is_target_alone(combine.rows((len(roles) - 1) // 2)[0]):
                roles = ("target",)  # expert and base may be missing
        for role in roles:
            if role not in caches:
                raise UsageError(self._hint(role))
        leader, *others = [caches[role] for role in roles]
        if not others:
            return Ensemble(leader, (), combine)
        if method in (Method.CAPT, Method.EXPERT_LED, Method.DUO):
            proxies = [
                Proxy(each, self._tokenizers[each.role], self._alignment(leader.role, each.role))
                for each in others
            ]
            ensemble = Ensemble(leader, proxies, combine, method)
            # Skipping is validated for CAPT alone; reports and scores need the proxies everywhere.
            if options.speed is Speed.FAST and method is Method.CAPT:
                ensemble.skip_rule = None if options.top or scoring else SkipRule()
            return ensemble
        # With a shared vocabulary a proxy uses the leader's token ids.
        shared = method in (Method.PROXY_TUNING, Method.CONTRASTIVE)
        own = leader.model.vocabulary
        if shared and not all(own.same_as(each.model.vocabulary) for each in others):
            raise UsageError(
                f"--method {method} needs {' and '.join(roles)} to have one vocabulary, and they "
                "have not. --method capt does not need that."
            )
        proxies = [
            Proxy(each, self._tokenizers[each.role], None, shares_vocabulary=shared)
            for each in others
        ]
        published = self._published(method, proxies, scoring=scoring)
        return Ensemble(leader, proxies, combine, published=published)

    def _published(self, method: Method, proxies: Sequence[Proxy], *, scoring: bool) -> Published:
        """The function of a published method."""
        if method is Method.PROXY_TUNING:
            return proxy_tuning
        if method is Method.CONTRASTIVE:
            return partial(contrastive, scoring=scoring)
        roles = ("target", *(proxy.cache.role for proxy in proxies))
        strings = [self._token_strings(role) for role in roles]
        if method in (Method.UNITE, Method.UNITE_20):
            return partial(
                unite, strings, k=20 if method is Method.UNITE_20 else 10, scoring=scoring
            )
        if method is not Method.SAFE:
            return partial(paper_capt, strings, scoring=scoring)

        def keeps_tokens(token: int) -> bool:
            text = self._tokenizers["target"].vocabulary.text((token,))
            return bool(text) and proxies[0].keeps_tokens(text)

        return partial(safe, strings, keeps_tokens, scoring=scoring)

    def _alignment(self, leader: str, role: str) -> Alignment:
        """The alignment of a proxy, shared by all proxies with the same vocabulary."""
        own = self._tokenizers[role]
        for known, other, alignment in self._alignments:
            if known == leader and other.vocabulary.same_as(own.vocabulary):
                return alignment
        if leader not in self._events:
            self._events[leader] = TargetEvents(self._tokenizers[leader])
        made = fit(own.vocabulary, self._events[leader])
        self._alignments.append((leader, own, made))
        return made

    def _token_strings(self, role: str) -> TokenStrings:
        if role not in self._strings:
            tokenizer = self._tokenizers[role]
            self._strings[role] = TokenStrings(tokenizer.vocabulary, tokenizer.tokenize)
        return self._strings[role]
