"""What the boundary before a token tells: some tokens cannot follow some others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from capt_local.alignment.question import FloatArray
from capt_local.tokenization.tokenizer import TextTokenizer

# What a candidate keeps that the tokenizer would not write behind the last token.
REFUSED = 0.01


class Pairs:
    """Whether the tokenizer writes two tokens side by side as they are.

    Args:
        tokenizer: of the target.

    Attributes:
        asked: pairs that the tokenizer was asked for so far, each once.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[tuple[int, int], bool] = {}

    @property
    def asked(self) -> int:
        """Pairs that were looked up in the tokenizer."""
        return len(self._known)

    def stand(self, before: int, token: int) -> bool:
        """Whether the bytes of both become these two tokens; what is not UTF-8 is let pass."""
        known = self._known.get((before, token))
        if known is None:
            known = self._known[before, token] = self._split(before, token)
        return known

    def factors(
        self, before: int | None, tokens: Sequence[int], asked: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """What each candidate keeps of its probability under a proxy, shape (n,).

        Args:
            before: the target's last token; None at the beginning.
            tokens: candidates, shape (n,).
            asked: which of them are looked up, shape (n,); the others keep all.
        """
        result = np.ones(len(tokens))
        if before is not None:
            for place in np.flatnonzero(asked).tolist():
                if not self.stand(before, tokens[place]):
                    result[place] = REFUSED
        return result

    def _split(self, before: int, token: int) -> bool:
        vocabulary = self._tokenizer.vocabulary
        if not (vocabulary.is_text[before] and vocabulary.is_text[token]):
            return True
        text = vocabulary.piece(before) + vocabulary.piece(token)
        try:
            text.decode()
        except UnicodeDecodeError:
            return True
        return self._tokenizer.encode(text, start=False) == [before, token]
