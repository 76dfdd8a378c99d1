"""One proxy (expert or base) that follows the text of the answer in its own tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from capt_local.alignment.context import CanonicalContext
from capt_local.alignment.fit import AnyAlignment
from capt_local.alignment.projection import Back, CandidateQuery, FloatArray, Probabilities, View
from capt_local.decoding.cached import CachedModel, common_length
from capt_local.decoding.combine import exponentials, total
from capt_local.decoding.model import Rows
from capt_local.prompting.messages import Prompt
from capt_local.tokenization.tokenizer import TextTokenizer

# Rows that are kept behind the last token: healing needs a few, and some more save decoding tokens
# again when the text is rolled back over a short word.
_KEPT_ROWS = 8


def softmax(logits: Rows) -> Probabilities:
    """Probabilities of one row of logits, as a new array of the same shape."""
    row, _ = exponentials(logits, float(logits.max()))
    row *= np.float32(1.0 / total(row))
    return row


class Proxy:
    """Keeps a model at the canonical tokens of prompt + answer.

    Args:
        cached: the model and what it has seen.
        tokenizer: of the model.
        alignment: onto the target's tokens.
        keeps_logits: for a method that needs more than probabilities.

    Attributes:
        cached: see above.
        alignment: see above.
        can_look_ahead: whether the model can forget a draft.
        keeps_logits: see above.
    """

    def __init__(
        self,
        cached: CachedModel,
        tokenizer: TextTokenizer,
        alignment: AnyAlignment,
        *,
        keeps_logits: bool = False,
    ) -> None:
        """Starts with an empty context."""
        self.cached = cached
        self.alignment = alignment
        self.can_look_ahead = cached.model.can_rewind
        self._tokenizer = tokenizer
        self._context = CanonicalContext(tokenizer, (), start=False)
        self._rows: dict[int, Probabilities] = {}
        self.keeps_logits = keeps_logits
        self._logits: Rows | None = None

    @property
    def tokens(self) -> list[int]:
        """The tokens of prompt and answer; do not change them."""
        return self._context.tokens

    @property
    def room(self) -> int:
        """Tokens that still fit into the context."""
        return self.cached.model.context_limit - len(self.tokens)

    def start(self, prompt: Prompt) -> None:
        """Takes a prompt; decodes nothing yet. What the KV cache shares with it is kept."""
        self._rows.clear()
        self._logits = None
        if self.alignment.follows_tokens:
            self._context = CanonicalContext(self._tokenizer, prompt.tokens, start=False)
        elif prompt.goes_on:
            head = [token for segment in prompt.segments[:-1] for token in segment.tokens]
            text = prompt.segments[-1].text or b""
            self._context = CanonicalContext(self._tokenizer, head, text, start=True)
        else:
            self._context = CanonicalContext(
                self._tokenizer, prompt.tokens, start=prompt.starts_fresh
            )

    def append(self, token: int, piece: bytes) -> None:
        """Follows one token of the answer. Decodes nothing yet: see `settle`."""
        if self.alignment.follows_tokens:
            self._context.tokens.append(token)
        elif piece:
            same = self._context.append(piece)
            self._rows = {place: row for place, row in self._rows.items() if place <= same}
            if self._context.unseen:
                self.tell_unseen()

    def tell_unseen(self) -> None:
        """Adds the notice that some bytes have no token."""
        self.cached.tell(
            f"The {self.cached.role} has no token for some bytes of the text and does not see them."
        )

    def context(self) -> CanonicalContext:
        """A copy of the tokens of prompt and answer, to go on from without this proxy."""
        context = copy.copy(self._context)
        context.tokens = list(context.tokens)
        return context

    def rows(self) -> dict[int, Probabilities]:
        """The rows that are known, by how many tokens they follow."""
        return dict(self._rows)

    def begin_ahead(self) -> None:
        """Makes room for rows ahead of the present text; takes over what is known here."""
        rows = self._missing()
        if rows and self.cached.has(self.tokens, rows):
            self.settle()
        self.cached.kept.begin(self.tokens)

    def look_ahead(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        """Reads the next places if these pieces come; see `Follower.look_ahead`.

        The tokens of the whole draft go through the model in one batch. Where the draft is cut
        off in the middle of them, the text has other tokens: these branch off, in a second batch.
        """
        contexts = self._contexts(pieces)
        path, rows = contexts[-1], self._missing()
        goes_on = path[: len(self.tokens)] == self.tokens
        first = common_length(self.tokens, path) + 1
        if rows and goes_on:
            first = len(self.tokens) - rows + 1
        kept = self.cached.kept
        ready = all(kept.get(path, count) is not None for count in range(first, len(path) + 1))
        tails: dict[tuple[int, ...], int] = {}
        for tokens in contexts[1:]:
            at = common_length(tokens, path)
            # After the end of a longer tail alone a row is read; two of them would want more.
            if at == len(tokens) - 1 and not self.cached.has(tokens, 1):
                tails[tuple(tokens)] = at
        if ready and not tails and (not rows or goes_on):
            return
        if not goes_on:
            self.settle()  # the draft changes the last token, which has to be read first
        self.cached.look_ahead(path, first)
        if tails and max(tails.values()) <= len(self.cached.tokens):
            self._branch(tails)

    def _branch(self, tails: dict[tuple[int, ...], int]) -> None:
        """Reads what follows texts that leave the decoded one, each after so many tokens."""
        texts = list(tails)[: self.cached.model.max_rows]
        places = [tails[text] for text in texts]
        self.cached.kept.hold()
        ends = [text[place:] for text, place in zip(texts, places, strict=True)]
        for text, row in zip(texts, self.cached.branch(ends, places), strict=True):
            self.cached.kept.put(list(text), row, view=False)

    def _contexts(self, pieces: Sequence[tuple[int, bytes]]) -> list[list[int]]:
        """The tokens now, and after each piece."""
        context = self.context()
        found = [self.tokens]
        for token, piece in pieces:
            if self.alignment.follows_tokens:
                context.tokens.append(token)
            elif piece:
                context.append(piece)
            found.append(list(context.tokens))
        return found

    def wanted_rows(self) -> list[int]:
        """After how many tokens rows are needed: after the last pieces that may be healed."""
        size = len(self.tokens)
        return list(range(size - len(self._rests()), size + 1))

    def settle(self) -> None:
        """Brings the model to the text, so that the rows that `probability` needs are there."""
        if rows := self._missing():
            first = len(self.tokens) - rows + 1
            for offset, logits in enumerate(self.cached.follow(self.tokens, rows)):
                self.keep_row(first + offset, logits)

    def _missing(self) -> int:
        """After how many of the last tokens `settle` reads a row; 0 where all have been read."""
        missing = [place for place in self.wanted_rows() if place not in self._rows]
        return len(self.tokens) - missing[0] + 1 if missing else 0

    def keep_row(self, place: int, logits: Rows) -> None:
        """Keeps what follows the first `place` tokens."""
        self._rows[place] = softmax(logits)
        if self.keeps_logits and place == len(self.tokens):
            self._logits = logits.copy()
        for old in sorted(self._rows)[:-_KEPT_ROWS]:
            del self._rows[old]

    def probability(self, question: CandidateQuery[Any]) -> FloatArray:
        """Probability of each token in question; `settle` comes first. See `Alignment`."""
        rests, size = self._rests(), len(self.tokens)
        back = [
            Back(self._rows[place], self.tokens[place], rest)
            for place, rest in zip(range(size - 1, -1, -1), rests, strict=False)
        ]
        return self.alignment.probability(question, View(self.row, back))

    @property
    def row(self) -> Probabilities:
        """Probabilities over the proxy's own vocabulary after the text, shape (vocabulary,)."""
        return self._rows[len(self.tokens)]

    @property
    def logits(self) -> Rows:
        """The same row as logits, where it `keeps_logits`."""
        assert self._logits is not None
        return self._logits

    def _rests(self) -> list[bytes]:
        """Bytes that may be healed, the shortest first."""
        return self._context.rests(self.alignment.depth)
