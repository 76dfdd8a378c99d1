"""What an answer was like, in numbers: enough to drive other models through the same work.

A trace holds no text and no token: how long the prompt was for each model, and for every token of
the answer whether expert and base had to be asked, whether the target's own choice came, how sure
the target was, and what each source of drafts would have offered at that place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capt_local.errors import UsageError

VERSION = 1
LONGEST_DRAFT = 12
MOST_STEPS = 100_000
_MOST_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True)
class Offer:
    """What one source would have drafted.

    Attributes:
        grades: how sure it was of each token (its own scale, from 0); its length is that of the
            draft.
        right: tokens at the front that came.
        plausible: tokens at the front that the target finds plausible; at least those.
        first: how sure it was before it decoded anything; -1 where it does not know then.
    """

    grades: tuple[int, ...]
    right: int
    plausible: int
    first: int = -1

    def __post_init__(self) -> None:
        """Refuses what cannot be.

        Raises:
            UsageError: the numbers do not belong together.
        """
        if not 1 <= len(self.grades) <= LONGEST_DRAFT:
            raise UsageError(f"a draft has 1 to {LONGEST_DRAFT} tokens")
        if not 0 <= self.right <= self.plausible <= len(self.grades):
            raise UsageError("the counts of a draft do not belong together")
        if not all(0 <= grade <= 9 for grade in self.grades) or not -1 <= self.first <= 9:
            raise UsageError("the grade of a draft is 0 to 9")


@dataclass(frozen=True, slots=True)
class Place:
    """One token of an answer.

    Attributes:
        gated: whether one token alone was plausible.
        own: whether the target's own choice came.
        sure: probability of the target's own choice, 0 to 1.
        offers: drafts that begin with this token, by the name of their source.
    """

    gated: bool
    own: bool
    sure: float
    offers: Mapping[str, Offer]

    def __post_init__(self) -> None:
        """Refuses what cannot be.

        Raises:
            UsageError: the numbers do not belong together.
        """
        if not 0.0 <= self.sure <= 1.0:
            raise UsageError("a probability is not between 0 and 1")
        if self.gated and not self.own:
            raise UsageError("a token that alone was plausible is not the target's own")


@dataclass(frozen=True, slots=True)
class Walked:
    """One answer.

    Attributes:
        prompt: tokens of the prompt, by role; the target's is there.
        places: of the tokens, in order; at least one.
    """

    prompt: Mapping[str, int]
    places: tuple[Place, ...]

    def __post_init__(self) -> None:
        """Refuses what cannot be.

        Raises:
            UsageError: the prompt or the answer is empty, or too long to be true.
        """
        if "target" not in self.prompt:
            raise UsageError("the length of the target's prompt is missing")
        if not all(1 <= count <= _MOST_TOKENS for count in self.prompt.values()):
            raise UsageError("a prompt has a length that cannot be")
        if not 1 <= len(self.places) <= MOST_STEPS:
            raise UsageError(f"an answer has 1 to {MOST_STEPS} tokens")


@dataclass(frozen=True, slots=True)
class Trace:
    """All answers of a run.

    Attributes:
        source: where they come from, such as "recorded" or "synthetic 75 %".
        answers: at least one.
    """

    source: str
    answers: tuple[Walked, ...]

    @property
    def sources(self) -> frozenset[str]:
        """The sources of drafts that offer something."""
        places = (place for one in self.answers for place in one.places)
        return frozenset(name for place in places for name in place.offers)

    def as_object(self) -> dict[str, object]:
        """For a script."""
        return {
            "source": self.source,
            "answers": len(self.answers),
            "tokens": self.places,
            "own": self.share("own"),
            "gated": self.share("gated"),
        }

    @property
    def places(self) -> int:
        """Tokens of all answers."""
        return sum(len(one.places) for one in self.answers)

    @property
    def longest(self) -> int:
        """Tokens of the longest answer."""
        return max(len(one.places) for one in self.answers)

    def share(self, what: str) -> float:
        """The share of tokens that are `gated` or the target's `own`."""
        found = sum(bool(getattr(place, what)) for one in self.answers for place in one.places)
        return found / self.places
