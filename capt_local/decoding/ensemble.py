"""A leading model (usually the target) and proxies that follow its text, at one position.

`Ensemble.distribution` brings all models to the text and combines what they say. Which models a
method needs, and how they are aligned, is in `EnsembleBuilder`.
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

_NOTHING = np.float32(1e4)  # nats below the least; a probability of 0
# From this share of the mixture on the target is alone: the others could move a probability by a
# thousandth, and are not run.
TARGET_ALONE = 0.999
# Where `Speed.FAST` skips the proxies, chosen on validation text (docs/results.md).
SURE, MOVED = 0.8, 0.05
_FADING, _REMINDER = 0.9, 8
# A published method: from the logits of the leading model and of the others what it chooses among;
# None for the leading model alone.
Published = Callable[..., Choices | None]


class SkipRule:
    """Where the proxies hardly count, so that `Speed.FAST` takes the target's distribution.

    They do not where the target gives its likeliest token the probability `sure`; nor where, as
    far as is known, they move less than `moved` of the probability: on average over the last
    places at which they ran, which they do every few tokens in any case.
    """

    def __init__(self, sure: float = SURE, moved: float = MOVED) -> None:
        self._least = math.log(sure)
        self._limit = moved
        self.start(0)

    def start(self, place: int) -> None:
        """Begins behind so many tokens, of which nothing is known."""
        self._moved, self._ran_at = 2 * self._limit, place

    def skips(self, own: Candidates, place: int) -> bool:
        """Whether they are skipped behind `place` tokens."""
        if own.logp.max() >= self._least:
            return True
        return self._moved < self._limit and place - self._ran_at < _REMINDER

    def observe(self, here: Distribution, place: int) -> None:
        """Takes in what they did behind `place` tokens."""
        moved = 0.5 * float(np.abs(np.exp(here.logp) - np.exp(here.candidates.logp)).sum())
        self._moved = _FADING * self._moved + (1.0 - _FADING) * moved
        self._ran_at = place


class Ensemble:
    """See the module.

    Args:
        leader: the model whose tokens are chosen, and what it has read.
        proxies: expert and base, further pairs, or nothing: then the leader answers alone.
        options: the weight of each model.
        method: which products; see `combine.Contrast`.
        published: the method instead of products.

    Attributes:
        leader, proxies, options, published: see above.
        tokens: the leader's tokens, prompt and answer.
        contrast: the products.
        exponents: of the products that are mixed; empty for a method without any.
        weights: of the mixture, summing to 1, one for each of `exponents`.
        target_alone: whether the proxies have no weight and do not run.
        skip_certain: whether the proxies do not run where one token alone is plausible; they catch
            up later. What they would have said is then not known.
        skip_rule: where they do not run either; the leader's distribution is taken. None: nowhere.
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
        self._lay_out(answer=False)

    def _lay_out(self, *, answer: bool) -> None:
        """The products, which all weigh the same until there is evidence."""
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
        """Whether there are weights that evidence can set."""
        return len(self.exponents) > 1

    def set_weights(self, weights: FloatArray) -> None:
        """Sets the weights that the evidence gives; the target may be all of it."""
        self.weights = weights
        if self._method is not Method.EXPERT_LED:
            only = [is_target_alone(exponents) for exponents in self.exponents]
            self.target_alone = float(weights[only].sum()) >= TARGET_ALONE

    def start(self, prompts: Mapping[str, Prompt], reserve: int = 1, *, exact: bool = True) -> None:
        """Takes a prompt, by role; nothing is decoded before it is known to fit into all contexts.

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
        self._leading_space = own.lead
        if self.skip_rule is not None:
            self.skip_rule.start(len(self.tokens))
        for each in self.models:  # what proxies catch up with comes in one batch
            each.exact = exact and (each is self.leader or self.skip_rule is None)
        self.leader.keep_as(None)
        # What stands in front of a text that is scored from its beginning is no turn.
        self._lay_out(answer=not own.goes_on and any(each.evidence for each in own.segments))
        for proxy in self.proxies:
            proxy.start(prompts[proxy.cache.role])

    def leader_row(self) -> Row:
        """The leader's logits behind the text: a view that stands until it decodes again."""
        return self.leader.logits_for(self.tokens)[0]

    def distribution(
        self, only: BoolArray | None = None, *, alone: bool = False, run_all: bool = False
    ) -> Distribution:
        """The distribution over what may come next; brings the models there first.

        Args:
            only: the tokens that may come, shape (vocabulary,); the leader gives nothing to the
                others. None: all.
            alone: the leader's own; the others stay where they are.
            run_all: the proxies run also where the rule would skip them.
        """
        row = self.leader_row()
        if only is not None:  # finite, so that any exponent leaves numbers
            row = np.where(only, row, row.min() - _NOTHING)
        if alone or self.target_alone:
            found = self._leaders_own(row)
            return found if alone or not self.proxies else _without_proxies(found)
        # Where a context is full all models run, so that the answer ends where it does in any case.
        if only is None and self.tokens_left > 1:
            if self.skip_certain and self.published is None:
                certain = self.contrast.certain(row, self.weights)
                if certain is not None:
                    return certain
            if not run_all and self.skips_proxies:
                return _without_proxies(self._leaders_own(row))
        # One after the other: each on half of the cores at the same time was slower.
        for proxy in self.proxies:
            proxy.sync()
        if self.published is not None:
            made = self.published(row, *(proxy.row for proxy in self.proxies))
            return self._leaders_own(row) if made is None else made.over(row)
        own = self.contrast.candidates(row)
        asked = queries(own, self.proxies, start=bool(self._leading_space))
        said = [each.probability(asked[id(each.alignment)]) for each in self.proxies]
        logps = proxy_logps(own, self.proxies, asked, said)
        found = self.contrast.combined(own, logps, row, self.weights)
        if self.skip_rule is not None and only is None:
            self.skip_rule.observe(found, len(self.tokens))
        return found

    @property
    def skips_proxies(self) -> bool:
        """Whether the rule skips the proxies behind the text."""
        if self.skip_rule is None or self.target_alone:
            return False
        own = self.contrast.candidates(self.leader_row())
        return self.skip_rule.skips(own, len(self.tokens))

    def _leaders_own(self, row: Row) -> Distribution:
        own = self.contrast.candidates(row)
        return self._alone.combined(own, np.empty((0, len(own.tokens))), row, np.ones(1))

    def advance(self, token: int) -> None:
        """Goes one token on. The models decode it when the next distribution is wanted."""
        self.advance_reading(token, self.piece(token))

    def advance_reading(self, token: int, read: bytes | None, before: Sequence[int] = ()) -> None:
        """The same where the proxies read other bytes, or with None nothing.

        `before` are the tokens in front of it which some of these bytes are of.
        """
        self.tokens.append(token)
        self._leading_space = b""
        if read is not None and not self.target_alone:
            for proxy in self.proxies:
                proxy.append(token, read, before)

    def piece(self, token: int) -> bytes:
        """What a token adds to the answer, without a space that the tokenizer puts in front."""
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
        """Whether all models can read a draft and forget it again."""
        running = self.models[:1] if self.target_alone else self.models
        return all(each.model.can_rewind for each in running)

    def read_ahead(self, draft: Sequence[int], *, read: bool) -> None:
        """Has the models read a draft behind the text, each in as few batches as it can.

        Where the leader has `read` all of it but the last token, it stops there.
        """
        path = [*self.tokens, *draft]
        if not read:
            self.leader.logits_for(path, len(draft) + 1)
        if self.target_alone:
            return
        plausible = draft[: self._plausible(path)]  # behind another one nothing will be needed
        if plausible:
            for proxy in self.proxies:
                proxy.read_ahead(plausible, self._pieces(plausible))

    def read_known(self, tokens: Sequence[int]) -> None:
        """Has each model that has nothing to say yet read the text, and some of what is to come."""
        if not self.leader.has(self.tokens):
            ahead = tokens[: self.leader.model.max_rows - 1]
            self.leader.logits_for([*self.tokens, *ahead], len(ahead) + 1)
        for proxy in self.proxies:
            cache, ahead = proxy.cache, tokens[: proxy.cache.model.max_rows]
            is_read = cache.has(proxy.tokens, len(proxy.wanted_rows()))
            if ahead and cache.model.can_rewind and not is_read:
                proxy.read_ahead(ahead, self._pieces(ahead))

    def drop_ahead(self) -> None:
        """Takes back what models have read beyond the text."""
        texts = [self.tokens, *(proxy.tokens for proxy in self.proxies)]
        for cache, text in zip(self.models, texts, strict=True):
            if cache.model.can_rewind:
                cache.rewind(common_length(cache.tokens, text))

    def save(self) -> tuple[Any, ...]:
        """The text so far, for `restore`."""
        return [*self.tokens], self._leading_space, [proxy.context() for proxy in self.proxies]

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Goes back to a text; the models are brought there when they are read."""
        tokens, self._leading_space, texts = saved
        self.tokens = [*tokens]
        for proxy, text in zip(self.proxies, texts, strict=True):
            proxy.restore(text)

    def _pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """What each of some tokens that come next adds to the answer."""
        text = self.leader.model.vocabulary.text
        return [self.piece(tokens[0]), *(text((token,)) for token in tokens[1:])]

    def _plausible(self, path: list[int]) -> int:
        """How many tokens of a path behind the text are plausible where they come."""
        limit, size = np.log(max(self.options.plausibility, TINY)), len(self.tokens)
        for place in range(size, len(path)):
            if not self.leader.has(path[:place]):
                return place - size
            row = self.leader.logits_for(path[:place])[0]
            if row[path[place]] < row.max() + limit:
                return place - size
        return len(path) - size


def _without_proxies(found: Distribution) -> Distribution:
    """The leader's distribution where the proxies might have said something."""
    unknown = np.full(len(found.logp), np.nan)
    return dataclasses.replace(found, contrast=unknown, proxies_skipped=True)


def read_by(
    method: Method, role: str, asked: str | Sequence[Message], *, raw: bool
) -> tuple[str | Sequence[Message], bool]:
    """What a model reads of a prompt under a method, and whether without a chat template."""
    if raw or role == "target" or method is not Method.CAPT_PAPER_RAW:
        return asked, raw
    if isinstance(asked, str):
        return asked, True
    return "\n\n".join(turn.content for turn in asked), True


def is_target_alone(exponents: Exponents) -> bool:
    """Whether T^a E^b A^-c is T."""
    return exponents[0] == 1.0 and not any(exponents[1:])


def first_pair_notice(pairs: int) -> str:
    """What to say where a method for one pair meets several."""
    return f"This method uses one pair of expert and base: the first of {pairs}."


class EnsembleBuilder:
    """Puts loaded models together for a method. Tables between vocabularies are made once.

    Args:
        caches: the models by role: target, expert, base, and expert-2, base-2, ... for further
            pairs.
        tokenizers: of the same models.
        hint: how to name a missing model, for messages: from the role a sentence.
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
        """What the user should know about the models that a method leaves out."""
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
                roles = ("target",)  # nothing else needs to run, or to be there
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
            # Other products are not measured with skips; reports and scores are of all tokens.
            if options.speed is Speed.FAST and method is Method.CAPT:
                ensemble.skip_rule = None if options.top or scoring else SkipRule()
            return ensemble
        # With one vocabulary a proxy takes the leader's tokens as they are.
        shared = method in (Method.PROXY_TUNING, Method.CONTRASTIVE)
        own = leader.model.vocabulary
        if shared and not all(own.same_as(each.model.vocabulary) for each in others):
            raise UsageError(
                f"--method {method} needs {' and '.join(roles)} to have one vocabulary, and they "
                "have not. --method capt does not need that."
            )
        proxies = [
            Proxy(each, self._tokenizers[each.role], None, follows_tokens=shared) for each in others
        ]
        published = self._published(method, proxies, scoring=scoring)
        return Ensemble(leader, proxies, combine, published=published)

    def _published(self, method: Method, proxies: Sequence[Proxy], *, scoring: bool) -> Published:
        """The algorithm of a published method."""
        if method is Method.PROXY_TUNING:
            return proxy_tuning
        if method is Method.CONTRASTIVE:
            return partial(contrastive, scoring=scoring)
        roles = ("target", *(proxy.cache.role for proxy in proxies))
        strings = [self._spelled(role) for role in roles]
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
        """One table for all proxies of one vocabulary."""
        own = self._tokenizers[role]
        for known, other, alignment in self._alignments:
            if known == leader and other.vocabulary.same_as(own.vocabulary):
                return alignment
        if leader not in self._events:
            self._events[leader] = TargetEvents(self._tokenizers[leader])
        made = fit(own.vocabulary, self._events[leader])
        self._alignments.append((leader, own, made))
        return made

    def _spelled(self, role: str) -> TokenStrings:
        if role not in self._strings:
            tokenizer = self._tokenizers[role]
            self._strings[role] = TokenStrings(tokenizer.vocabulary, tokenizer.tokenize)
        return self._strings[role]
