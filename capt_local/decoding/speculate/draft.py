"""What a draft is, and what its sources have to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from capt_local.decoding.rules import Distribution
from capt_local.decoding.trio import Trio

# The leader of a draft by the model whose tokens are chosen, whatever its role.
LEADING = "leading"

# Told how sure the source is of its next token (a grade of its own); whether to draft it.
GoOn = Callable[[int], bool]


class Draft(NamedTuple):
    """Tokens of the target that may come next.

    Attributes:
        tokens: in order.
        grades: how sure the source was of each, see `DraftSource.grades`.
        read: whether the target has already read all of them but the last.
    """

    tokens: list[int]
    grades: list[int]
    read: bool = False

    def checked(self, most: int, grades: int) -> Draft:
        """The same with at most so many tokens.

        Raises:
            ValueError: there is not one grade below `grades` for each token.
        """
        right = all(0 <= grade < grades for grade in self.grades)
        if len(self.tokens) != len(self.grades) or not right:
            raise ValueError("a draft without a grade for each token")
        return Draft(self.tokens[:most], self.grades[:most], self.read)


class Ahead(Protocol):
    """What reads ahead of an answer."""

    def prepare(self, most: int) -> None:
        """A choice comes, and at most so many tokens with it."""
        ...

    def chose(self, token: int, here: Distribution | None) -> None:
        """A token has been chosen.

        Args:
            token: which.
            here: what it was chosen from; None where the target alone had a say.
        """
        ...


class DraftSource(Protocol):
    """Guesses how the answer goes on. A wrong guess costs time, never the answer.

    Attributes:
        name: of the source, for figures.
        priors: for each grade, the share of tokens that is expected to be right before anything
            is known about the answer at hand.
        leader: the role of the model that decodes the draft token by token, or LEADING; None:
            nobody.
    """

    name: str
    priors: tuple[float, ...]
    leader: str | None

    def start(self, trio: Trio) -> None:
        """A new answer begins."""
        ...

    def grade(self, trio: Trio) -> int | None:
        """How sure the first token of a draft would be, before anything is decoded.

        None where there is nothing to offer; -1 where that is not known yet.
        """
        ...

    def seen(self, trio: Trio, token: int, here: Distribution) -> tuple[int, bool] | None:
        """What a choice tells of a draft that was not made: its grade, and whether it was right.

        None where that is not known without work.

        Args:
            trio: at the text before the token.
            token: that was chosen.
            here: what it was chosen from.
        """
        ...

    def draft(self, trio: Trio, most: int, go_on: GoOn) -> Draft:
        """Guesses the next tokens.

        Args:
            trio: at the text.
            most: tokens at most, at least 1.
            go_on: asked before each token.
        """
        ...
