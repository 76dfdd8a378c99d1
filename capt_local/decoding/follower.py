"""What the trio needs of a model that reads along with the target: expert or base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from capt_local.alignment.fit import AnyAlignment
from capt_local.alignment.projection import CandidateQuery, FloatArray, Probabilities
from capt_local.decoding.cached import CachedModel
from capt_local.decoding.model import Rows
from capt_local.prompting.messages import Prompt


class Follower(Protocol):
    """Follows the text of the answer in its own tokens."""

    cached: CachedModel
    alignment: AnyAlignment
    can_look_ahead: bool

    @property
    def tokens(self) -> list[int]:
        """The tokens of prompt and answer; not to be changed."""
        ...

    @property
    def room(self) -> int:
        """Tokens that still fit into the context."""
        ...

    @property
    def row(self) -> Probabilities:
        """Probabilities over its own vocabulary after the text, shape (vocabulary,)."""
        ...

    @property
    def logits(self) -> Rows:
        """The same row as logits, where a method needs them."""
        ...

    def start(self, prompt: Prompt) -> None:
        """Takes a prompt; decodes nothing yet."""
        ...

    def append(self, token: int, piece: bytes) -> None:
        """Follows one token of the answer; decodes nothing yet."""
        ...

    def settle(self) -> None:
        """Brings the model to the text."""
        ...

    def begin_ahead(self) -> None:
        """Makes room for rows ahead of the present text."""
        ...

    def look_ahead(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        """Reads, in as few batches as it can, what the next places need if pieces come.

        Args:
            pieces: tokens that the target may write, with their bytes, in order.
        """
        ...

    def wanted_rows(self) -> Iterable[int]:
        """After how many tokens rows are needed at the present place."""
        ...

    def keep_row(self, place: int, logits: Rows) -> None:
        """Keeps what follows the first `place` tokens."""
        ...

    def probability(self, question: CandidateQuery[Any]) -> FloatArray:
        """Probability of each token in question after the text; `settle` comes first."""
        ...
