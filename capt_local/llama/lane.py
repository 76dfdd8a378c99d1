"""One of several texts on a context, as a model by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from capt_local.errors import CaptError, UsageError
from capt_local.llama.context import Rows
from capt_local.llama.on_weights import OnWeights
from capt_local.llama.options import LoadOptions
from capt_local.llama.weights import Weights

# Rows that a step may need; room for so many is kept.
_FEW = 4


class Part(NamedTuple):
    """Tokens to append to a lane, and how many of the last of them want their logits."""

    lane: Lane
    tokens: Sequence[int]
    rows: int


class Owner(Protocol):
    """What a lane needs of all lanes together; see `llama.lanes`."""

    weights: Weights
    options: LoadOptions

    @property
    def limit(self) -> int:
        """Tokens that each lane holds."""
        ...

    @property
    def can_rewind(self) -> bool:
        """Whether the memory can forget a part."""
        ...

    def run(self, parts: Sequence[tuple[Lane, Sequence[int], int]]) -> list[Rows | CaptError]:
        """Decodes parts together."""
        ...

    def cut(self, lane: Lane, length: int) -> bool:
        """Drops a lane's tokens from a position on; see `Model.rewind`."""
        ...


class Lane(OnWeights):
    """See `decode.model.Model`, which this is.

    Attributes:
        number: of the lane.
        position: tokens in its KV cache now.
        rows: what the last part gave; the lane's own, so that no other lane overwrites them.
    """

    def __init__(self, owner: Owner, number: int) -> None:
        """An empty lane."""
        self._owner = owner
        self.weights = owner.weights
        self.number = number
        self.position = 0
        self._room: Rows = np.empty((1, len(owner.weights.vocabulary)), np.float32)
        self.rows = self._room[:0]

    @property
    def context_limit(self) -> int:
        """Tokens that the lane holds."""
        return self._owner.limit

    @property
    def max_rows(self) -> int:
        """The most logit rows that one `extend` can return."""
        return self._owner.options.max_rows

    @property
    def can_rewind(self) -> bool:
        """Whether the memory can forget a part."""
        return self._owner.can_rewind

    def make_room(self, count: int) -> None:
        """Makes room for so many rows. Many are needed for prompts alone, so they are not kept."""
        width = len(self.vocabulary)
        if count > _FEW:
            self.rows = np.empty((count, width), np.float32)
            return
        if len(self._room) < count:
            self._room = np.empty((_FEW, width), np.float32)
        self.rows = self._room[:count]

    def extend(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """Appends tokens, without the other lanes; see `decode.model.Model.extend`."""
        if not 0 <= rows <= min(len(tokens), self.max_rows) or not tokens:
            raise ValueError(f"{rows} rows of {len(tokens)} tokens, at most {self.max_rows}")
        (result,) = self._owner.run([Part(self, tokens, rows)])
        if isinstance(result, CaptError):
            raise result
        return result

    def rewind(self, length: int) -> bool:
        """Drops all tokens from position `length` on; see `decode.model.Model.rewind`."""
        if not 0 <= length <= self.position:
            raise ValueError(f"cannot rewind from {self.position} to {length}")
        return length == self.position or self._owner.cut(self, length)

    def branch(self, tails: Sequence[Sequence[int]], after: Sequence[int] | None = None) -> Rows:
        """Logits after each of several continuations, one after the other.

        Raises:
            UsageError: the memory cannot forget a part, or they begin further back.
        """
        start = self.position
        if not self.can_rewind or any(place != start for place in after or ()):
            raise UsageError(
                "This alignment needs branches, which these models do not have where several "
                "requests are answered together: answer them one at a time."
            )
        found = np.empty((len(tails), len(self.vocabulary)), np.float32)
        for number, tail in enumerate(tails):
            found[number] = self.extend(tail)[0]
            self.rewind(start)
        return found

    def close(self) -> None:
        """Nothing: all lanes close together."""
