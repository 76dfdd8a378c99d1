"""What the decoder needs of a model; the engine provides it, tests provide it in 60 lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from capt_local.tokenization.vocabulary import Vocabulary

# Logits, or probabilities: one row over a vocabulary, or several.
Row = npt.NDArray[np.float32]
Rows = npt.NDArray[np.float32]


class Model(Protocol):
    """One model with one running sequence of tokens in its KV cache.

    Logits are rows of float32 over the vocabulary, unnormalised (nats). A row is a view into memory
    that the next call to the same model overwrites.

    Attributes:
        context_limit: tokens that the context holds.
        position: tokens in the KV cache now.
        max_rows: the most logit rows that one call can return.
        size: bytes of its weights.
        can_rewind: whether the memory can forget a part; see `rewind`.
        batch_floor: how `step` gives a token the same bits whatever comes with it. 0: in batches of
            any size; 1: one by one; more: in batches of at least so many.
        adapter_scales: weights of the LoRA adapters on the model, in their order.
    """

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def context_limit(self) -> int: ...

    @property
    def position(self) -> int: ...

    @property
    def max_rows(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def can_rewind(self) -> bool: ...

    @property
    def batch_floor(self) -> int: ...

    @property
    def adapter_scales(self) -> tuple[float, ...]: ...

    def price(self, count: int) -> float:
        """What a batch of so many tokens costs here, in batches of one, as far as is known."""
        ...

    def tokenize(self, text: bytes, *, special: bool) -> list[int]:
        """Splits UTF-8 text the way llama.cpp does, without adding BOS or EOS.

        With `special`, control tokens written out in `text` become those tokens; without, they
        stay text, except USER_DEFINED ones, which llama.cpp always matches. A tokenizer that puts
        a space before a text does so here too.
        """
        ...

    def extend(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """Appends tokens in batches and returns the logits after the last `rows` of them.

        Args:
            tokens: at least one token. With `rows` = 0 no logits are computed.
            rows: 0 to min(len(tokens), max_rows).

        Returns:
            Shape (rows, vocabulary), the last row being what follows all tokens. Every value is
            finite.

        Raises:
            ContextOverflow: the tokens do not fit; nothing was appended.
            NumericalError: a logit is NaN or infinite.
        """
        ...

    def step(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """As `extend`, with the bits that these tokens have when they are appended one by one."""
        ...

    def peek(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """The same logits as `step`, as a copy; the running sequence stays as it was."""
        ...

    def rewind(self, length: int) -> bool:
        """Drops all tokens from position `length` on.

        False where the model's memory cannot forget a part (sliding window, recurrent): then the
        whole sequence has been dropped (`position` is 0) and must be computed again.
        """
        ...

    def set_adapter_scales(self, scales: Sequence[float] | None) -> None:
        """Gives the adapters other weights; where they change, the whole sequence is dropped.

        None is for those that the model was loaded with.

        Raises:
            UsageError: there are not as many as adapters.
        """
        ...

    def close(self) -> None:
        """Frees the KV cache (and the weights, when nothing else uses them)."""
        ...
