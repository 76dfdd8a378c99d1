"""A leading model (usually the target) and proxies that follow its text, at one position.

`Ensemble.distribution` brings all models to the text and combines what they say. Which models a
method needs, and how they are aligned, is in `EnsembleBuilder`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from capt_local.alignment import Align
from capt_local.alignment.fit import AnyAlignment, fit
from capt_local.alignment.paper import TokenStrings
from capt_local.alignment.projection import TINY, SharedVocabulary, TargetEvents
from capt_local.decoding.baselines import (
    Choices,
    Contrastive,
    PaperCapt,
    Published,
    Safe,
    Unite,
    proxy_tuning,
)
from capt_local.decoding.combine import Contrast, Distribution, FloatArray, Rule
from capt_local.decoding.options import (
    AlignOptions,
    CombineOptions,
    Exponents,
    GenerateOptions,
    Method,
)
from capt_local.decoding.proxy import LogitsCache, Proxy, common_length
from capt_local.errors import ContextOverflow, UsageError
from capt_local.prompting.messages import Message, Prompt
from capt_local.tokenization.tokenizer import TextTokenizer
from capt_local.tokenization.vocabulary import BoolArray

_NOTHING = np.float32(1e4)  # nats below the least; a probability of 0
# From this share of the mixture on the target is alone: the others could move a probability by a
# thousandth, and are not run.
TARGET_ALONE = 0.999


class Ensemble:
    """See the module.

    Args:
        leader: the model whose tokens are chosen, and what it has read.
        proxies: expert and base, further pairs, or nothing: then the leader answers alone.
        options: the weight of each model.
        rule: the method; None: the products that the options name.
        expert_leads: these products, led by the expert and followed by target and base.
        duo: products of the leader and one proxy, without any base.

    Attributes:
        leader, options: see above.
        proxies: see above; those of a fixed weight of 0 are not among them.
        tokens: the leader's tokens, prompt and answer.
        weights: of the mixture, summing to 1, one for each of `exponents`.
        skip_certain: whether the proxies do not run where one token alone is plausible; they catch
            up later. What they would have said is then not known.
    """

    def __init__(
        self,
        leader: LogitsCache,
        proxies: Sequence[Proxy] = (),
        options: CombineOptions | None = None,
        rule: Rule | None = None,
        *,
        expert_leads: bool = False,
        duo: bool = False,
    ) -> None:
        """Starts without a text."""
        self.leader = leader
        self.proxies = tuple(proxies)
        self.options = options or CombineOptions()
        self.tokens: list[int] = []
        self.skip_certain = False
        self._rule = rule
        self._expert_leads = expert_leads
        self._duo = duo
        self._leading_space = b""
        self._answers_turn = False
        self.configure(self.options)

    def configure(self, options: CombineOptions) -> None:
        """Sets the weights; without evidence all that are mixed weigh the same."""
        self.options = options
        # A published method has weights of its own, so those for several pairs are not read.
        pairs = 0 if self._rule else len(self.proxies) // 2
        self.contrast = Contrast(
            options,
            pairs,
            expert_leads=self._expert_leads,
            duo=self._duo,
            answer=self._answers_turn,
        )
        self._alone = Contrast(options, 0)
        self.rule: Rule = self._rule or self.contrast
        count = max(len(self.rule.exponents), 1)
        self.weights: FloatArray = np.full(count, 1.0 / count)
        self.target_alone = not self.proxies

    @property
    def exponents(self) -> tuple[Exponents, ...]:
        """The exponents of what is mixed; empty for a method without any."""
        return self.rule.exponents if self.proxies else ()

    @property
    def mixes(self) -> bool:
        """Whether there are weights that evidence can set."""
        return len(self.exponents) > 1

    def set_weights(self, weights: FloatArray) -> None:
        """Sets the weights that the evidence gives; the target may be all of it."""
        self.weights = weights
        if not self._expert_leads and self._rule is None:
            only = [is_target_alone(exponents) for exponents in self.exponents]
            self.target_alone = float(weights[only].sum()) >= TARGET_ALONE

    def start(self, prompts: Mapping[str, Prompt], reserve: int = 1, *, exact: bool = True) -> None:
        """Takes a prompt; nothing is decoded before it is known to fit into all contexts.

        Args:
            prompts: by role.
            reserve: tokens that must be left for the answer.
            exact: see `LogitsCache`.

        Raises:
            ContextOverflow: with the counts of every model.
        """
        counts = {each.role: len(prompts[each.role].tokens) for each in self.models}
        limits = {each.role: each.model.context_limit for each in self.models}
        if any(counts[role] + reserve > limits[role] for role in counts):
            raise ContextOverflow(counts, min(limits.values()), reserve)
        self.tokens = list(prompts[self.leader.role].tokens)
        self._leading_space = prompts[self.leader.role].lead
        own = prompts[self.leader.role]
        # What stands in front of a text that is scored from its beginning is no turn.
        self._answers_turn = not own.goes_on and any(each.evidence for each in own.segments)
        for each in self.models:
            each.exact = exact
        self.leader.keep_as(None)
        self.configure(self.options)
        for proxy in self.proxies:
            proxy.start(prompts[proxy.cache.role])

    def sync(self) -> None:
        """Brings all models to the text."""
        self.leader_row()
        # One after the other: each on half of the cores at the same time was slower.
        for proxy in self.proxies:
            proxy.sync()

    def leader_row(self) -> npt.NDArray[np.float32]:
        """The leader's logits behind the text: a view that stands until it decodes again."""
        return self.leader.logits_for(self.tokens)[0]

    def distribution(self, only: BoolArray | None = None, *, alone: bool = False) -> Distribution:
        """The distribution over what may come next; brings the models there first.

        Args:
            only: the tokens that may come, shape (vocabulary,); the leader gives nothing to the
                others. None: all.
            alone: the leader's own; the others stay where they are.
        """
        row = self.leader_row()
        if only is not None:  # finite, so that any exponent leaves numbers
            row = np.where(only, row, row.min() - _NOTHING)
        start = bool(self._leading_space)
        if alone or self.target_alone:
            own = self._alone.distribution(row, (), np.ones(1), start=start)
            return own if alone or not self.proxies else self._without_proxies(own)
        # Where a context is full all models run, so that the answer ends where it does in any case.
        if self.skip_certain and only is None and self.tokens_left > 1:
            certain = self.certain()
            if certain is not None:
                return certain
        for proxy in self.proxies:
            proxy.sync()
        return self.rule.distribution(row, self.proxies, self.weights, start=start)

    def certain(self) -> Distribution | None:
        """The distribution where the proxies cannot change it, without running them."""
        if not self.proxies or self.rule is not self.contrast:
            return None
        return self.contrast.certain(self.leader_row(), self.proxies, self.weights)

    def advance(self, token: int) -> None:
        """Goes one token on. The models decode it when the next distribution is wanted."""
        self.advance_reading(token, self.piece(token))

    def advance_reading(self, token: int, read: bytes | None, before: Sequence[int] = ()) -> None:
        """The same where the proxies read something else, or with None nothing.

        Args:
            token: of the leader.
            read: the bytes that the proxies read.
            before: the tokens in front of it which some of these bytes are of.
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

        Args:
            draft: tokens that may come next.
            read: whether the leader has read all of them but the last; it then stops there.
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
        """Has each model that has nothing to say yet read the text, and some of what follows.

        Args:
            tokens: of the leader, that are known to come.
        """
        if not self.leader.has(self.tokens):
            ahead = tokens[: self.leader.model.max_rows - 1]
            self.leader.logits_for([*self.tokens, *ahead], len(ahead) + 1)
        for proxy in self.proxies:
            ahead = tokens[: proxy.cache.model.max_rows]
            if ahead and proxy.cache.model.can_rewind and not proxy.is_read:
                proxy.read_ahead(ahead, self._pieces(ahead))

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

    def drop_ahead(self) -> None:
        """Takes back what models have read beyond the text."""
        texts = [self.tokens, *(proxy.tokens for proxy in self.proxies)]
        for cache, text in zip(self.models, texts, strict=True):
            if cache.model.can_rewind:
                cache.rewind(common_length(cache.tokens, text))

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

    def _without_proxies(self, own: Distribution) -> Distribution:
        """The leader's distribution, marked as one for which the proxies did not run."""
        return Distribution(
            own.candidates,
            np.full(len(own.logp), np.nan),
            own.logp,
            own.row,
            own.members,
            np.empty((0, len(own.logp))),
            proxies_skipped=True,
        )


def read_by(
    method: Method, role: str, asked: str | Sequence[Message], *, raw: bool
) -> tuple[str | Sequence[Message], bool]:
    """What a model reads of a prompt under a method, and whether without a chat template."""
    if raw or role == "target" or not method.proxies_read_raw:
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
        """Builds nothing yet."""
        self._caches = dict(caches)
        self._tokenizers = dict(tokenizers)
        self._hint = hint
        self._tables: dict[str, _Tables] = {}
        self._strings: dict[str, TokenStrings] = {}
        self._proxies: dict[tuple[AlignOptions, str, str], Proxy] = {}

    def with_caches(self, caches: Mapping[str, LogitsCache]) -> EnsembleBuilder:
        """The same for other contexts on the same models; the tables are shared."""
        other = EnsembleBuilder(caches, self._tokenizers, self._hint)
        other._tables, other._strings = self._tables, self._strings
        return other

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The roles of each pair of expert and base."""
        experts = [role for role in self._caches if role.startswith("expert")]
        return tuple((role, role.replace("expert", "base")) for role in experts)

    def notices(self, method: Method) -> list[str]:
        """What the user should know about the models that a method leaves out."""
        proxies = {"expert", "base"} & set(method.roles or ())
        return [first_pair_notice(len(self.pairs))] if proxies and len(self.pairs) > 1 else []

    def build(self, options: GenerateOptions, *, scoring: bool = False) -> Ensemble:
        """The models that a method needs, in their places.

        Args:
            options: the method, the alignment and the weights.
            scoring: the form of a published method that gives every token some probability,
                instead of the one that it generates with (docs/method.md).

        Raises:
            UsageError: the method needs a model that is not there, or one vocabulary where there
                are two.
        """
        method, combine = options.method, options.combine
        roles = method.roles or ("target", *(role for pair in self.pairs for role in pair))
        if method is Method.CAPT:
            if len(roles) == 1:
                roles = ("target", "expert", "base")
            if not combine.mixes and is_target_alone(combine.rows((len(roles) - 1) // 2)[0]):
                roles = ("target",)  # nothing else needs to run, or to be there
        leader, *others = [self._need(role) for role in roles]
        if not others:
            return Ensemble(leader, (), combine)
        if method in (Method.CAPT, Method.EXPERT_LED):
            proxies = [self._proxy(options.align, leader.role, each) for each in others]
            led = method is Method.EXPERT_LED
            return Ensemble(leader, proxies, combine, expert_leads=led)
        if method is Method.DUO:
            proxies = [self._proxy(options.align, leader.role, each) for each in others]
            return Ensemble(leader, proxies, combine, duo=True)
        if method in (Method.PROXY_TUNING, Method.CONTRASTIVE):
            self._need_one_vocabulary(method, roles)
            alignment: AnyAlignment = SharedVocabulary()
        else:
            events = self._onto("target").events
            alignment = fit(self._tokenizers["expert"], events, Align.CAPT_PAPER)
        followers = [
            Proxy(each, self._tokenizers[each.role], alignment, keeps_logits=True)
            for each in others
        ]
        if method is Method.SAFE:
            safe = Safe(
                self._spelled("target"),
                self._spelled("expert"),
                leader.model.vocabulary,
                scoring=scoring,
            )
            return Ensemble(leader, followers, combine, safe)
        return Ensemble(
            leader, followers, combine, Published(self._choices(method, scoring=scoring))
        )

    def _proxy(self, how: AlignOptions, leader: str, cache: LogitsCache) -> Proxy:
        key = how, leader, cache.role
        if key not in self._proxies:
            tokenizer = self._tokenizers[cache.role]
            alignment = self._onto(leader).alignment(how, tokenizer)
            self._proxies[key] = Proxy(cache, tokenizer, alignment)
        return self._proxies[key]

    def _choices(self, method: Method, *, scoring: bool) -> Callable[..., Choices]:
        """The published algorithm."""
        if method is Method.PROXY_TUNING:
            return proxy_tuning
        made: Contrastive | PaperCapt | Unite
        if method is Method.CONTRASTIVE:
            made = Contrastive()
        elif method in (Method.UNITE, Method.UNITE_20):
            k = 20 if method is Method.UNITE_20 else 10
            made = Unite(self._spelled("target"), self._spelled("expert"), k)
        else:
            target, expert, base = map(self._spelled, ("target", "expert", "base"))
            made = PaperCapt(target, expert, base)
        return made.scoring if scoring else made.generating

    def _onto(self, role: str) -> _Tables:
        """The alignments onto the vocabulary of a role."""
        if role not in self._tables:
            self._tables[role] = _Tables(self._tokenizers[role])
        return self._tables[role]

    def _spelled(self, role: str) -> TokenStrings:
        found = self._strings.get(role)
        if found is None:
            tokenizer = self._tokenizers[role]
            found = self._strings[role] = TokenStrings(tokenizer.vocabulary, tokenizer.tokenize)
        return found

    def _need(self, role: str) -> LogitsCache:
        if role not in self._caches:
            raise UsageError(self._hint(role))
        return self._caches[role]

    def _need_one_vocabulary(self, method: Method, roles: Sequence[str]) -> None:
        first, *others = [self._tokenizers[role].vocabulary for role in roles]
        if not all(first.same_as(other) for other in others):
            raise UsageError(
                f"--method {method} needs {' and '.join(roles)} to have one vocabulary, and they "
                "have not. --method capt does not need that."
            )


class _Tables:
    """The alignments of proxies onto one leading vocabulary, each made once."""

    def __init__(self, leader: TextTokenizer) -> None:
        self._leader = leader
        self._known: list[tuple[AlignOptions, TextTokenizer, AnyAlignment]] = []

    @cached_property
    def events(self) -> TargetEvents:
        """The events of the leading vocabulary."""
        return TargetEvents(self._leader)

    def alignment(self, how: AlignOptions, tokenizer: TextTokenizer) -> AnyAlignment:
        """One table for all models of one vocabulary."""
        for known, other, alignment in self._known:
            if known == how and other.vocabulary.same_as(tokenizer.vocabulary):
                return alignment
        made = fit(tokenizer, self.events, how.kind)
        self._known.append((how, tokenizer, made))
        return made
