"""A proxy that is read over all tokenizations of the answer: the reference, slow and exact.

Where `Proxy` stands at the canonical tokens of the text, this one keeps a beam of sequences that
cover it (`alignment.exact`), from the last safe cut of the prompt on. A token of the target is
looked up by its bytes: the probability that the text goes on with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from capt_local.alignment.events import END_EVENT, TargetEvents
from capt_local.alignment.exact.coverings import Coverings
from capt_local.alignment.fit import AnyAlignment
from capt_local.alignment.question import FloatArray, Probabilities, Question
from capt_local.decoding.cached import CachedModel
from capt_local.decoding.model import Rows
from capt_local.decoding.proxy import Proxy, softmax
from capt_local.errors import ModelError
from capt_local.prompting.messages import Prompt
from capt_local.tokenization.prefix_index import PrefixIndex
from capt_local.tokenization.tokenizer import TextTokenizer

# Sequences with a smaller share are left out, also on the way to a token of several pieces: that
# token then gets nothing. With ten times as much a base gave 0 to a word of a clinical note.
_DROP = 1e-4


class ExactProxy:
    """Keeps a beam over the coverings of the answer. See `decode.follower.Follower`.

    Args:
        cached: the model and what it has seen.
        tokenizer: of the model.
        alignment: whose questions are answered, and which weighs the evidence of the prompt.
        index: the model's text tokens in byte order.
        events: of the target.
    """

    can_look_ahead = False

    def __init__(
        self,
        cached: CachedModel,
        tokenizer: TextTokenizer,
        alignment: AnyAlignment,
        index: PrefixIndex,
        events: TargetEvents,
    ) -> None:
        """Starts with an empty context."""
        self.cached = cached
        self.alignment = alignment
        self._tokenizer = tokenizer
        self._index = index
        self._events = events
        self._plain = Proxy(cached, tokenizer, alignment)
        self._head: list[int] = []
        self._waiting: list[bytes] = []
        self._coverings = self._beam()

    @property
    def tokens(self) -> list[int]:
        """The canonical tokens of prompt and answer."""
        return self._plain.tokens

    @property
    def room(self) -> int:
        """Tokens that still fit into the context beside the longest sequence of the beam."""
        longest = max((len(one.tokens) for one in self._coverings.branches), default=0)
        waiting = sum(map(len, self._waiting))
        used = max(len(self._head) + longest + waiting, len(self.tokens))
        return self.cached.model.context_limit - used

    @property
    def row(self) -> Probabilities:
        """What follows the canonical tokens; takes the model there and the beam's cache away."""
        self._plain.settle()
        return self._plain.row

    @property
    def logits(self) -> Rows:
        """Not kept: no method that needs logits reads all tokenizations."""
        raise NotImplementedError

    def start(self, prompt: Prompt) -> None:
        """Takes a prompt. Tokens before the last safe cut of its text are taken as they are.

        So is the first token of all.
        """
        self._plain.start(prompt)
        self._coverings = self._beam()
        lead = self._tokenizer.lead
        if not prompt.goes_on:
            self._head = list(prompt.tokens)
            self._waiting = [lead if prompt.starts_fresh else b""]
            return
        text = prompt.segments[-1].text or b""
        cut = self._tokenizer.last_cut(text)
        self._head = [token for segment in prompt.segments[:-1] for token in segment.tokens]
        self._head += self._tokenizer.encode(text[:cut], start=True) if cut else []
        waiting = text[cut:] if cut else lead + text
        if not self._head:
            # Nothing can be read before the first token of all (of a model without BOS).
            self._head = self.tokens[:1]
            first = self._tokenizer.vocabulary.text(self._head)
            waiting = waiting[len(first) :]
        self._waiting = [waiting]

    def append(self, token: int, piece: bytes) -> None:
        """Follows one token of the answer. Decodes nothing yet: see `settle`."""
        self._plain.append(token, piece)
        self._waiting.append(piece)

    def settle(self) -> None:
        """Brings the beam to the text, as if it had followed each piece when it came.

        What it leaves out on the way depends on where it stops, and it is to be the same whether
        or not it was asked at each place.

        Raises:
            ModelError: the vocabulary cannot spell the text.
        """
        while self._waiting:
            try:
                self._coverings.append(self._waiting[0])
            except ValueError:
                raise ModelError(
                    f"The vocabulary of the {self.cached.role} cannot spell the text, so it has no "
                    "exact probability. Use --alignment projection."
                ) from None
            del self._waiting[0]
            self._head += self._coverings.rebase()
            self._coverings.settle()

    def begin_ahead(self) -> None:
        """Nothing: it cannot look ahead."""

    def look_ahead(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        """Nothing: which tokenizations matter is only known when the text is there."""

    def wanted_rows(self) -> Iterable[int]:
        """None: the beam reads its own."""
        return ()

    def keep_row(self, place: int, logits: Rows) -> None:
        """Keeps nothing."""

    def probability(self, question: Question[Any]) -> FloatArray:
        """The probability that the text goes on with each token's bytes, or ends."""
        wanted = question.wanted
        said = np.zeros(len(wanted))
        ends, texts = wanted == END_EVENT, np.flatnonzero(wanted > END_EVENT)
        if ends.any():
            said[ends] = self._coverings.end()
        if len(texts):
            pieces = [self._events.piece(int(event)) for event in wanted[texts]]
            said[texts] = self._coverings.prefix(pieces)
        return said

    def _beam(self) -> Coverings:
        end_ids = self.cached.model.vocabulary.end_ids
        return Coverings(self._index, end_ids, self._read, drop=_DROP)

    def _read(self, tails: Sequence[tuple[int, ...]]) -> Probabilities:
        """Rows after the head and each tail."""
        cached, most = self.cached, self.cached.model.max_rows
        if not tails[0]:
            return softmax(cached.follow(self._head, 1)[0])[None, :]
        cached.bring(self._head)
        rows = []
        for at in range(0, len(tails), most):
            rows += [softmax(row) for row in cached.branch(tails[at : at + most])]
        return np.stack(rows)
