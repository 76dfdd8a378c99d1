"""What the decoder needs from a model. The engine provides it; tests provide it in 30 lines.

Logits are rows of float32 over the model's vocabulary, unnormalised (nats). A row is a view into
memory that the next call to the same model overwrites: copy what is to be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from capt_local.tokenization.vocabulary import Vocabulary

if TYPE_CHECKING:
    from capt_local.decoding.structured import Constraint

Rows = npt.NDArray[np.float32]


class Model(Protocol):
    """One model with one running sequence of tokens in its KV cache."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens."""
        ...

    @property
    def context_limit(self) -> int:
        """Tokens that the context holds."""
        ...

    @property
    def position(self) -> int:
        """Tokens in the KV cache now."""
        ...

    @property
    def max_rows(self) -> int:
        """The most logit rows that one `extend` can return."""
        ...

    @property
    def size(self) -> int:
        """Bytes of its weights."""
        ...

    def price(self, count: int) -> float:
        """What a batch of so many tokens costs here, in batches of one, as far as is known."""
        ...

    @property
    def can_rewind(self) -> bool:
        """Whether the memory can forget a part; see `rewind`."""
        ...

    def tokenize(self, text: bytes, *, special: bool) -> list[int]:
        """Splits UTF-8 text the way llama.cpp does, without adding BOS or EOS.

        With `special`, control tokens written out in `text` become those tokens; without, they
        stay text, except USER_DEFINED ones, which llama.cpp always matches. A tokenizer that puts
        a space before a text does so here too.
        """
        ...

    def extend(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """Appends tokens and returns the logits after the last `rows` of them.

        Args:
            tokens: at least one token. Long lists run in chunks; with `rows` = 0 no logits are
                computed.
            rows: 0 to min(len(tokens), max_rows).

        Returns:
            Shape (rows, vocabulary), the last row being what follows all tokens. A view that the
            next call overwrites. Every value is finite.

        Raises:
            ContextOverflow: the tokens do not fit; nothing was appended.
            NumericalError: a logit is NaN or infinite.
        """
        ...

    def rewind(self, length: int) -> bool:
        """Drops all tokens from position `length` on.

        Returns:
            False where the model's memory cannot forget a part (sliding window, recurrent): then
            the whole sequence has been dropped (`position` is 0) and must be computed again.
        """
        ...

    def branch(self, tails: Sequence[Sequence[int]], after: Sequence[int] | None = None) -> Rows:
        """Logits after each of several continuations of the running sequence, in one batch.

        The running sequence stays as it is. All tails share its KV cache.

        Args:
            tails: at most `max_rows` continuations of at least one token each.
            after: how many tokens of the running sequence each of them goes on from, where the
                model can rewind; None: from its end.

        Returns:
            Shape (len(tails), vocabulary): the row after the last token of each tail. A copy.
        """
        ...

    def constraint(self, grammar: str, lead: bytes) -> Constraint:
        """What a grammar allows in an answer, by this model's tokens.

        Args:
            grammar: in GBNF.
            lead: what the tokenizer puts in front of the answer, which is no part of it.

        Raises:
            UsageError: the grammar cannot be read.
        """
        ...

    def close(self) -> None:
        """Frees the KV cache (and the weights, when nothing else uses them)."""
        ...
