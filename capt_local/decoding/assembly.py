"""Which models take which places for a method, and how they are aligned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from capt_local.alignment import Align
from capt_local.alignment.fit import AnyAlignment, fit
from capt_local.alignment.paper import TokenStrings
from capt_local.alignment.projection import SharedVocabulary
from capt_local.decoding.cached import CachedModel
from capt_local.decoding.methods.choices import Choices
from capt_local.decoding.methods.contrastive import Contrastive
from capt_local.decoding.methods.paper import PaperCapt
from capt_local.decoding.methods.proxy_tuning import proxy_tuning
from capt_local.decoding.methods.unite import Unite
from capt_local.decoding.options import GenerateOptions, Method
from capt_local.decoding.proxy import Proxy
from capt_local.decoding.rules import Published
from capt_local.decoding.tables import Tables
from capt_local.decoding.trio import Trio
from capt_local.errors import UsageError
from capt_local.tokenization.tokenizer import TextTokenizer


def first_pair_notice(pairs: int) -> str:
    """What to say where a method for one pair meets several."""
    return f"This method uses one pair of expert and base: the first of {pairs}."


class Assembly:
    """Puts loaded models together. Tables between vocabularies are made once.

    Args:
        cached: the models by role: target, expert, base, and expert-2, base-2, ... for further
            pairs.
        tokenizers: of the same models.
        hint: how to name a missing model, for messages: told the role, returns a sentence.
    """

    def __init__(
        self,
        cached: Mapping[str, CachedModel],
        tokenizers: Mapping[str, TextTokenizer],
        hint: Callable[[str], str],
    ) -> None:
        """Builds nothing yet."""
        self._cached = dict(cached)
        self._tokenizers = dict(tokenizers)
        self._hint = hint
        self._tables: dict[str, Tables] = {}
        self._shared: Callable[[str], Tables] | None = None
        self._strings: dict[str, TokenStrings] = {}

    def beside(self, cached: Mapping[str, CachedModel]) -> Assembly:
        """The same for other contexts on the same models; the tables are shared."""
        other = Assembly(cached, self._tokenizers, self._hint)
        other._shared = self._onto
        other._strings = self._strings
        return other

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The roles of each pair of expert and base."""
        experts = [role for role in self._cached if role.startswith("expert")]
        return tuple((role, role.replace("expert", "base")) for role in experts)

    def notices(self, method: Method) -> list[str]:
        """What the user should know about the models that a method leaves out."""
        proxies = {"expert", "base"} & set(method.roles or ())
        return [first_pair_notice(len(self.pairs))] if proxies and len(self.pairs) > 1 else []

    def trio(self, options: GenerateOptions, *, scoring: bool = False) -> Trio:
        """The models that a method needs, in their places.

        Args:
            options: the method, the alignment and the weights.
            scoring: the form of a published method that gives every token some probability,
                instead of the one that it generates with (docs/baselines.md).

        Raises:
            UsageError: the method needs a model that is not there, or one vocabulary where there
                are two.
        """
        method = options.method
        roles = method.roles or ("target", *(role for pair in self.pairs for role in pair))
        if method is Method.CAPT and len(roles) == 1:
            roles = ("target", "expert", "base")
        leader, *others = [self._need(role) for role in roles]
        tokenizer = self._tokenizers[leader.role]
        if method is Method.CAPT:
            followed = self._onto(leader.role).followers(options.align, others)
            return Trio(leader, followed, options.combine, tokenizer=tokenizer)
        if not others:
            return Trio(leader, (), options.combine, tokenizer=tokenizer)
        if method is Method.EXPERT_LED:
            led = self._onto(leader.role).followers(options.align, others)
            return Trio(leader, led, options.combine, expert_leads=True, tokenizer=tokenizer)
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
        rule = Published(self._choices(method, scoring=scoring))
        return Trio(leader, followers, options.combine, rule, tokenizer=tokenizer)

    def _choices(self, method: Method, *, scoring: bool) -> Callable[..., Choices]:
        """The published algorithm."""
        if method is Method.PROXY_TUNING:
            return proxy_tuning
        made: Contrastive | PaperCapt | Unite
        if method is Method.CONTRASTIVE:
            made = Contrastive()
        elif method is Method.UNITE:
            made = Unite(self._spelled("target"), self._spelled("expert"))
        else:
            target, expert, base = map(self._spelled, ("target", "expert", "base"))
            made = PaperCapt(target, expert, base)
        return made.scoring if scoring else made.generating

    def _onto(self, role: str) -> Tables:
        """The alignments onto the vocabulary of a role."""
        if role not in self._tables:
            if self._shared is not None:
                self._tables[role] = self._shared(role).beside()
            else:
                self._tables[role] = Tables(self._tokenizers[role], self._tokenizers)
        return self._tables[role]

    def _spelled(self, role: str) -> TokenStrings:
        found = self._strings.get(role)
        if found is None:
            tokenizer = self._tokenizers[role]
            found = self._strings[role] = TokenStrings(tokenizer.vocabulary, tokenizer.tokenize)
        return found

    def _need(self, role: str) -> CachedModel:
        if role not in self._cached:
            raise UsageError(self._hint(role))
        return self._cached[role]

    def _need_one_vocabulary(self, method: Method, roles: Sequence[str]) -> None:
        first, *others = [self._tokenizers[role].vocabulary for role in roles]
        if not all(first.same_as(other) for other in others):
            raise UsageError(
                f"--method {method} needs {' and '.join(roles)} to have one vocabulary, and they "
                "have not. --method capt does not need that."
            )
