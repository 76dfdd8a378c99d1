"""A leading model and those that read along, at one place of one text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from capt_local.alignment.projection import TINY
from capt_local.decoding.cached import CachedModel, common_length
from capt_local.decoding.combine import FloatArray
from capt_local.decoding.follower import Follower
from capt_local.decoding.options import CombineOptions, Powers
from capt_local.decoding.rules import Contrast, Distribution, Rule
from capt_local.errors import ContextOverflow
from capt_local.prompting.messages import Prompt
from capt_local.tokenization.tokenizer import TextTokenizer
from capt_local.tokenization.vocabulary import BoolArray

_NOTHING = np.float32(1e4)  # nats below the least; a probability of 0


class Trio:
    """A target, and pairs of expert and base that follow its text.

    Other methods have other models in these places: contrastive decoding is led by the expert.

    Args:
        target: the model whose tokens are chosen, and what it has seen.
        proxies: expert and base, further pairs, or nothing: then the target answers alone.
        options: the weight of each model.
        rule: the method; None: the products that the options name.
        expert_leads: these products, led by the expert and followed by target and base.
        tokenizer: of the target, where drafts are to be turned into its tokens.

    Attributes:
        cached: the target and what it has seen.
        tokens: the target's tokens, prompt and answer.
        weights: of the mixture, summing to 1, one for each of `powers`.
        gates: whether expert and base are left out where one token alone is plausible; they catch
            up later. What they would have said is then not told.
    """

    def __init__(
        self,
        target: CachedModel,
        proxies: Sequence[Follower] = (),
        options: CombineOptions | None = None,
        rule: Rule | None = None,
        *,
        expert_leads: bool = False,
        tokenizer: TextTokenizer | None = None,
    ) -> None:
        """Starts without a text."""
        self.cached = target
        self.tokenizer = tokenizer
        self.proxies = tuple(proxies)
        self.options = options or CombineOptions()
        self.tokens: list[int] = []
        self.gates = False
        self._rule = rule
        self._expert_leads = expert_leads
        self._lead = b""
        self._row: npt.NDArray[np.float32] | None = None
        self.configure(self.options)

    def configure(self, options: CombineOptions) -> None:
        """Sets the weights; without evidence all that are mixed weigh the same."""
        self.options = options
        # A published method has weights of its own, so those for several pairs are not read.
        pairs = 0 if self._rule else len(self.proxies) // 2
        self.contrast = Contrast(options, pairs, expert_leads=self._expert_leads)
        self._alone = Contrast(options, 0)
        self.rule: Rule = self._rule or self.contrast
        count = max(len(self.rule.powers), 1)
        self.weights: FloatArray = np.full(count, 1.0 / count)

    @property
    def powers(self) -> tuple[Powers, ...]:
        """The exponents of what is mixed; empty for a method without any."""
        return self.rule.powers if self.proxies else ()

    @property
    def mixes(self) -> bool:
        """Whether there are weights that evidence can set."""
        return len(self.powers) > 1

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
        self._own_row()
        # One after the other: each on half of the cores at the same time was slower.
        for proxy in self.proxies:
            proxy.settle()

    def distribution(self, only: BoolArray | None = None, *, alone: bool = False) -> Distribution:
        """The distribution over what may come next; brings the models there first.

        Args:
            only: the tokens that may come, shape (vocabulary,); the target gives nothing to the
                others. None: all.
            alone: only the target has a say; the others stay where they are.
        """
        if alone:
            row = self._own_row()
            return self._alone.distribution(row, (), np.ones(1), start=bool(self._lead))
        # Where a context is full all are asked, so that the answer ends where it does in any case.
        if self.gates and only is None and self.room > 1 and (sole := self.sole()):
            return sole
        self.settle()
        row = self._own_row()
        if only is not None:  # finite, so that any exponent leaves numbers
            row = np.where(only, row, row.min() - _NOTHING)
        return self.rule.distribution(row, self.proxies, self.weights, start=bool(self._lead))

    @property
    def at_start(self) -> bool:
        """Whether an answer begins whose leading space is the tokenizer's own."""
        return bool(self._lead)

    @property
    def can_look_ahead(self) -> bool:
        """Whether all models can read a draft and forget it again."""
        return self.cached.model.can_rewind and all(each.can_look_ahead for each in self.proxies)

    @property
    def has_row(self) -> bool:
        """Whether the target has read what stands before the next choice."""
        return self._row is not None or self.cached.has(self.tokens, 1)

    def lead_row(self) -> npt.NDArray[np.float32]:
        """The target's logits behind the text; they stay while it reads ahead."""
        row = self._own_row().copy()
        self.cached.kept.put(self.tokens, row, view=False)
        self._row = None
        return row

    def begin_ahead(self) -> None:
        """Makes room for rows ahead of the present text."""
        row = self._row
        self.cached.kept.begin(self.tokens)
        if row is not None:
            self.lead_row()
        for proxy in self.proxies:
            proxy.begin_ahead()

    def look_ahead(self, draft: Sequence[int], *, read: bool) -> None:
        """Reads a draft in all models, each in as few batches as it can.

        Args:
            draft: tokens that may come next.
            read: whether the target has read all of them but the last; it then stops there.
        """
        path = [*self.tokens, *draft]
        if not read:
            self.cached.look_ahead(path, len(self.tokens))
        kept = self.plausible_ahead(path)  # behind an implausible token nothing will be asked
        pieces = [(token, self.cached.model.vocabulary.text((token,))) for token in draft[:kept]]
        if pieces:
            pieces[0] = (draft[0], self.piece(draft[0]))
        for proxy in self.proxies:
            proxy.look_ahead(pieces)

    def drop_ahead(self) -> None:
        """Takes back what models have read beyond the text."""
        texts = [self.tokens, *(proxy.tokens for proxy in self.proxies)]
        for cached, text in zip(self.models, texts, strict=True):
            cached.kept.clear()
            cached.keep(common_length(cached.tokens, text))

    def observe(self, weights: FloatArray) -> None:
        """Takes over the weights that the evidence gives."""
        self.weights = weights

    def advance(self, token: int) -> None:
        """Goes one token on. The models decode it when the next distribution is asked for."""
        self.advance_reading(token, self.piece(token))

    def advance_reading(self, token: int, read: bytes | None) -> None:
        """The same where expert and base read something else, or with None nothing."""
        self.tokens.append(token)
        self._row = None
        self._lead = b""
        if read is not None:
            for proxy in self.proxies:
                proxy.append(token, read)

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

    def plausible_ahead(self, path: list[int]) -> int:
        """How many tokens of a path behind the text are plausible where they come."""
        limit = np.log(max(self.options.plausibility, TINY))
        size = len(self.tokens)
        for place in range(size, len(path)):
            row = self.cached.kept.get(path, place)
            if row is None or row[path[place]] < row.max() + limit:
                return place - size
        return len(path) - size

    def sole(self) -> Distribution | None:
        """The distribution where expert and base cannot change it, without asking them."""
        if not self.proxies or self.rule is not self.contrast:
            return None
        return self.contrast.sole(self._own_row(), self.proxies, self.weights)

    def leader_row(self) -> npt.NDArray[np.float32]:
        """The leading model's logits behind the text: a view until it decodes again."""
        return self._own_row()

    def _own_row(self) -> npt.NDArray[np.float32]:
        """The target's logits behind the text."""
        if self._row is None:
            self._row = self.cached.follow(self.tokens, 1)[0]
        return self._row

    def _check_fit(self, prompts: Mapping[str, Prompt], reserve: int) -> None:
        counts = {each.role: len(prompts[each.role].tokens) for each in self.models}
        limits = {each.role: each.model.context_limit for each in self.models}
        if any(counts[role] + reserve > limits[role] for role in counts):
            raise ContextOverflow(counts, min(limits.values()), reserve)
