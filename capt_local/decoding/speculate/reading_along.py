"""Drafts by the expert: its own continuation, turned into tokens of the target.

A clinical expert knows best how a clinical text goes on, and is smaller than the target. What it
decodes for the draft it need not decode again for the check.
"""

from __future__ import annotations

from capt_local.decoding.proxy import Proxy, softmax
from capt_local.decoding.rules import Distribution
from capt_local.decoding.speculate.draft import Draft, GoOn
from capt_local.decoding.speculate.leading import grade_of
from capt_local.decoding.trio import Trio
from capt_local.tokenization.tokenizer import TextTokenizer


class ExpertDraft:
    """See the module. A grade is how sure the expert is of a piece.

    Args:
        proxy: the expert.
        tokenizer: of the target.
    """

    name = "expert-draft"
    leader: str | None = "expert"
    priors: tuple[float, ...] = (0.4, 0.6, 0.8, 0.95)

    def __init__(self, proxy: Proxy, tokenizer: TextTokenizer) -> None:
        """Has drafted nothing."""
        self._proxy = proxy
        self._tokenizer = tokenizer

    def start(self, trio: Trio) -> None:
        """Nothing to forget."""

    def grade(self, trio: Trio) -> int | None:
        """Not known before the expert has been asked."""
        return -1

    def seen(self, trio: Trio, token: int, here: Distribution) -> None:
        """Not known without a draft."""

    def draft(self, trio: Trio, most: int, go_on: GoOn) -> Draft:
        """The likeliest pieces, one after the other, as long as that seems worth it."""
        proxy, cached = self._proxy, self._proxy.cached
        vocabulary, room = cached.model.vocabulary, proxy.room
        proxy.settle()
        tokens, grades, text = list(proxy.tokens), list[int](), b""
        row = proxy.row
        while True:
            piece = int(row.argmax())
            grade = grade_of(float(row[piece]))
            spelled = vocabulary.piece(piece)
            over = vocabulary.is_end[piece] or not vocabulary.is_text[piece]
            if over or len(grades) == min(most, room) or not go_on(grade):
                break
            text += spelled
            grades.append(grade)
            tokens.append(piece)
            logits = cached.follow(tokens, 1)[0].copy()
            cached.kept.put(tokens, logits, view=False)
            row = softmax(logits)
        if not text:
            return Draft([], [])
        begun = not over and not spelled[:1].isspace()
        drafted = self._tokens(trio, text, begun=begun)[:most]
        # Pieces and tokens are about as long, so that a token takes the grade of "its" piece.
        grades = [grades[min(place, len(grades) - 1)] for place in range(len(drafted))]
        return Draft(drafted, grades)

    def _tokens(self, trio: Trio, text: bytes, *, begun: bool) -> list[int]:
        """Tokens of the target; what might still become another token at the end is left out."""
        try:
            tokens = self._tokenizer.encode(text, start=trio.at_start)
        except ValueError:  # the target cannot spell it, so it cannot come
            return []
        cut = self._tokenizer.last_cut(text) if begun else 0
        if not cut:
            return tokens
        size = 0
        for count, token in enumerate(tokens):
            if size >= cut:
                return tokens[:count]
            size += len(self._tokenizer.vocabulary.piece(token))
        return tokens
