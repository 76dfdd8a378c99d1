"""A model together with the tokens that its KV cache holds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from capt_local.decoding.kept import KeptRows, Row
from capt_local.decoding.model import Model, Rows
from capt_local.decoding.stopwatch import Stopwatch

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
        tokens: what the KV cache holds, which may be more than the text; do not change it.
        decoded: tokens decoded so far.
        passes: calls that decoded them.
        kept: rows that were computed ahead of the text.
        watch: measures what batches cost on this machine.
        notices: what the user should know, each once.
    """

    def __init__(self, role: str, model: Model) -> None:
        """Starts with what is expected to be an empty cache."""
        self.role = role
        self.model = model
        self.tokens: list[int] = []
        self.decoded = 0
        self.passes = 0
        self.kept = KeptRows()
        self.watch = Stopwatch(model.price)
        self.notices: list[str] = []

    def extend(self, tokens: Sequence[int], rows: int) -> Rows:
        """See `Model.extend`."""
        self._agree()
        self.kept.overwritten()
        started = time.perf_counter()
        try:
            result = self.model.extend(tokens, rows)
        finally:
            # A failed call leaves the cache as it was, or empty where it cannot be taken back.
            del self.tokens[self.model.position :]
        self.watch.time(len(tokens), time.perf_counter() - started)
        self.tokens += tokens
        self.decoded += len(tokens)
        self.passes += 1
        return result

    def keep(self, length: int) -> None:
        """Keeps at most the first `length` tokens; a model that cannot do that keeps none."""
        self._agree()
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

    def _agree(self) -> None:
        """Makes the record what the model holds.

        An interrupt between a call to the model and the line that takes it down leaves one of them
        behind the other.
        """
        known, held = len(self.tokens), self.model.position
        if held < known:
            del self.tokens[held:]
        elif held > known and not self.model.rewind(known):
            self.tokens.clear()

    def forget(self) -> None:
        """Keeps nothing of any text."""
        self.keep(0)
        self.kept.clear()

    def tell(self, notice: str) -> None:
        """Adds a notice, once."""
        if notice not in self.notices:
            self.notices.append(notice)

    def bring(self, tokens: Sequence[int]) -> None:
        """Brings the cache to exactly `tokens`, without a row."""
        self.keep(common_length(self.tokens, tokens))
        if len(self.tokens) < len(tokens):
            self.extend(tokens[len(self.tokens) :], 0)

    def branch(self, tails: Sequence[Sequence[int]], after: Sequence[int] | None = None) -> Rows:
        """See `Model.branch`."""
        self._agree()
        self.kept.overwritten()
        rows = self.model.branch(tails, after)
        self.decoded += sum(map(len, tails))
        self.passes += 1
        return rows

    def follow(self, tokens: list[int], rows: int) -> Sequence[Row]:
        """The logits after the last `rows` of `tokens`, decoded where they are not kept.

        Args:
            tokens: the whole text.
            rows: at least 1; tokens that are in the cache are decoded again for their row.

        Returns:
            Views until the next call that decodes.
        """
        kept = self._kept(tokens, rows)
        if kept is not None:
            return kept
        self.keep(min(common_length(self.tokens, tokens), len(tokens) - rows))
        return list(self.extend(tokens[len(self.tokens) :], rows))

    def keep_rows(self, tokens: list[int], rows: Rows) -> None:
        """Keeps views of the logits after the last tokens, shape (count, vocabulary)."""
        for back, row in enumerate(reversed(rows)):
            self.kept.put(tokens[: len(tokens) - back], row, view=True)

    def has(self, tokens: list[int], rows: int) -> bool:
        """Whether `follow` finds all its rows without decoding."""
        return self._kept(tokens, rows) is not None

    def look_ahead(self, path: list[int], first: int) -> None:
        """Decodes a text that may come, in one batch, and keeps what follows its last tokens.

        Args:
            path: the present text and what may come.
            first: rows are kept after this many tokens and after each further one. At most
                `max_rows`: the end of a longer path is left out.
        """
        path = path[: first + self.model.max_rows - 1]
        while first <= len(path) and self.kept.get(path, first) is not None:
            first += 1
        if first > len(path):
            return
        self.keep(min(common_length(self.tokens, path), first - 1))
        self.keep_rows(path, self.extend(path[len(self.tokens) :], len(path) - first + 1))

    def _kept(self, tokens: list[int], rows: int) -> list[Row] | None:
        """The rows of `follow`, if all are kept."""
        if not len(self.kept):
            return None
        found: list[Row] = []
        for count in range(len(tokens) - rows + 1, len(tokens) + 1):
            row = self.kept.get(tokens, count)
            if row is None:
                return None
            found.append(row)
        return found

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
