"""A model together with the tokens that its KV cache holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from capt_local.decode.model import Model, Rows

# Rows that lie this close together are read in one batch, the ones between them for nothing: a
# batch more would cost more than a few rows.
_GAP = 8


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens at the front are the same."""
    size = min(len(first), len(second))
    if first[:size] == second[:size]:
        return size
    return next(i for i in range(size) if first[i] != second[i])


class CachedModel:
    """Extends and rewinds a model, and knows what it has seen.

    Args:
        role: "target", "expert" or "base", for messages.
        model: the model; nobody else may move it.

    Attributes:
        tokens: what the KV cache holds; do not change it.
        decoded: tokens decoded so far.
        notices: what the user should know, each once.
    """

    def __init__(self, role: str, model: Model) -> None:
        """Starts with what is expected to be an empty cache."""
        self.role = role
        self.model = model
        self.tokens: list[int] = []
        self.decoded = 0
        self.notices: list[str] = []

    def extend(self, tokens: Sequence[int], rows: int) -> Rows:
        """See `Model.extend`."""
        try:
            result = self.model.extend(tokens, rows)
        finally:
            # A failed call leaves the cache as it was, or empty where it cannot be taken back.
            del self.tokens[self.model.position :]
        self.tokens += tokens
        self.decoded += len(tokens)
        return result

    def keep(self, length: int) -> None:
        """Keeps at most the first `length` tokens; a model that cannot do that keeps none."""
        if length >= len(self.tokens):
            return
        if self.model.rewind(length):
            del self.tokens[length:]
            return
        self.tokens.clear()
        self.tell(
            f"The {self.role} cannot take tokens back (recurrent or sliding-window memory): its "
            "whole text is computed again where that is needed. Slower, same answer."
        )

    def tell(self, notice: str) -> None:
        """Adds a notice, once."""
        if notice not in self.notices:
            self.notices.append(notice)

    def bring(self, tokens: Sequence[int]) -> None:
        """Brings the cache to exactly `tokens`, without a row."""
        self.keep(common_length(self.tokens, tokens))
        if len(self.tokens) < len(tokens):
            self.extend(tokens[len(self.tokens) :], 0)

    def branch(self, tails: Sequence[Sequence[int]]) -> Rows:
        """See `Model.branch`."""
        rows = self.model.branch(tails)
        self.decoded += sum(map(len, tails))
        return rows

    def follow(self, tokens: Sequence[int], rows: int) -> Rows:
        """Brings the cache to `tokens` and returns the logits after the last `rows` of them.

        Args:
            tokens: the whole text.
            rows: at least 1; tokens that are in the cache are decoded again for their row.
        """
        self.keep(min(common_length(self.tokens, tokens), len(tokens) - rows))
        return self.extend(tokens[len(self.tokens) :], rows)

    def read(
        self, tokens: Sequence[int], wanted: Sequence[int]
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Brings the cache to tokens[: wanted[-1]] and yields the rows on the way.

        Args:
            tokens: the text.
            wanted: after how many tokens a row is wanted, ascending, from 1; for none the cache
                stays as it is.

        Yields:
            (count, logits after the first `count` tokens); a view until the next one.
        """
        if not wanted:
            return
        self.keep(min(common_length(self.tokens, tokens), wanted[0] - 1))
        for group in _groups(wanted, self.model.max_rows):
            start = group[0] - 1
            if len(self.tokens) < start:
                self.extend(tokens[len(self.tokens) : start], 0)
            rows = self.extend(tokens[start : group[-1]], group[-1] - start)
            for count in group:
                yield count, rows[count - start - 1]


def _groups(wanted: Sequence[int], size: int) -> Iterator[list[int]]:
    """Splits ascending places where they lie apart, and after `size` rows."""
    group: list[int] = []
    for place in wanted:
        if group and (place - group[-1] > _GAP or place - group[0] >= size):
            yield group
            group = []
        group.append(place)
    if group:
        yield group
