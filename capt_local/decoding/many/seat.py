"""The model of one request among many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from capt_local.decoding.many.turns import Together, Turns
from capt_local.decoding.model import Rows
from capt_local.decoding.structured import Constraint
from capt_local.prompting.messages import Prompt
from capt_local.tokenization.vocabulary import Vocabulary

# Beginnings that are shorter are not worth keeping apart.
_LEAST = 32
# Tokens before the user's text that the evidence reads once more, for their rows.
_MARGIN = 8


def shared_beginning(prompt: Prompt) -> tuple[int, ...]:
    """What a prompt may have in common with others: all before the user's words.

    It is decoded by itself in any case, so that it has the same bits whoever computed it. Nothing
    else about the other prompts counts.
    """
    found: list[int] = []
    for segment in prompt.segments:
        if segment.evidence:
            break
        found += segment.tokens
    size = len(found) - _MARGIN
    return tuple(found[:size]) if size >= _LEAST else ()


class Seat:
    """A lane, for one request after the other. See `decode.model.Model`.

    Args:
        role: of the model.
        number: of the lane.
        model: all its lanes.
        turns: of all requests.
    """

    def __init__(self, role: str, number: int, model: Together, turns: Turns[Any]) -> None:
        """An empty lane."""
        self._role = role
        self._model = model
        self._lane = model.lanes[number]
        self._turns = turns
        self._beginning: tuple[int, ...] = ()
        self._others: Sequence[Seat] = ()

    @classmethod
    def row(cls, role: str, model: Together, turns: Turns[Any], count: int) -> list[Self]:
        """The first lanes of a model."""
        seats = [cls(role, number, model, turns) for number in range(count)]
        for seat in seats:
            seat._others = seats
        return seats

    def begin(self, beginning: tuple[int, ...]) -> None:
        """Empties the lane, but for a beginning: kept, taken over from a neighbour, or decoded.

        Raises:
            Cancelled, NumericalError, MemoryShortage, ModelError: as `extend`.
        """
        size = len(beginning)
        if size and self._holds(beginning) and self._lane.rewind(size):
            return
        self._beginning = ()
        self._lane.rewind(0)
        if not size:
            return
        source = next((other for other in self._others if other._holds(beginning)), None)
        if source is None or not self._model.share(source._lane, self._lane, size):
            self._lane.extend(beginning, 0)
        self._beginning = beginning

    def _holds(self, beginning: tuple[int, ...]) -> bool:
        return self._beginning == beginning and self._lane.position >= len(beginning)

    def extend(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """See `Model.extend`; few tokens wait until the other requests want some, too."""
        if len(tokens) > self._model.most_together:
            return self._lane.extend(tokens, rows)
        return self._turns.extend(self._role, self._lane, tokens, rows)

    def rewind(self, length: int) -> bool:
        """See `Model.rewind`."""
        if length < len(self._beginning):
            self._beginning = ()
        return self._lane.rewind(length)

    def branch(self, tails: Sequence[Sequence[int]], after: Sequence[int] | None = None) -> Rows:
        """See `Model.branch`."""
        return self._lane.branch(tails, after)

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens."""
        return self._lane.vocabulary

    @property
    def context_limit(self) -> int:
        """Tokens that the lane holds."""
        return self._lane.context_limit

    @property
    def position(self) -> int:
        """Tokens in the lane now."""
        return self._lane.position

    @property
    def max_rows(self) -> int:
        """The most logit rows that one `extend` can return."""
        return self._lane.max_rows

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return self._lane.size

    def price(self, count: int) -> float:
        """See `Model.price`."""
        return self._lane.price(count)

    @property
    def can_rewind(self) -> bool:
        """Whether the memory can forget a part."""
        return self._lane.can_rewind

    def tokenize(self, text: bytes, *, special: bool) -> list[int]:
        """See `Model.tokenize`."""
        return self._lane.tokenize(text, special=special)

    def constraint(self, grammar: str, lead: bytes) -> Constraint:
        """See `Model.constraint`."""
        return self._lane.constraint(grammar, lead)

    def close(self) -> None:
        """Nothing: all lanes close together."""
