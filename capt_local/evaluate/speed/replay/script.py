"""What a trace says about the answer at hand, as tokens of the models that are driven through it.

The answer is a text of our own, so that tokens have real boundaries; drafts that the trace calls
right are its next tokens, wrong ones are others from elsewhere in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from capt_local.evaluate.speed.replay.trace import Offer, Place, Walked


class Script:
    """One answer that is driven.

    Args:
        answer: of the trace.
        tokens: that are said, as many as the answer has places, and some more for drafts.
        start: tokens in front of them.

    Attributes:
        plausible: tokens of the last draft that the target found plausible.
    """

    def __init__(self, answer: Walked, tokens: Sequence[int], start: int) -> None:
        """Nothing has been said."""
        self._answer = answer
        self._tokens = list(tokens)
        self._start = start
        self.plausible = 0

    def token(self, index: int) -> int:
        """What is said at a step."""
        return self._tokens[index]

    def place(self, length: int) -> Place:
        """The place behind so many tokens of prompt and answer."""
        index = min(length - self._start, len(self._answer.places) - 1)
        return self._answer.places[index]

    def offer(self, name: str, length: int) -> Offer | None:
        """What a source offers behind so many tokens."""
        return self.place(length).offers.get(name)

    def draft(self, offer: Offer, length: int) -> list[int]:
        """The tokens of an offer behind so many tokens."""
        index = length - self._start
        right = self._tokens[index : index + offer.right]
        wrong = range(index + len(right), index + len(offer.grades))
        return right + [self._other(place) for place in wrong]

    def gated(self, length: int) -> bool:
        """Whether one token alone is plausible behind so many."""
        return self.place(length).gated

    def _other(self, place: int) -> int:
        """A token of the text that does not come at this place."""
        own = self._tokens[place % len(self._tokens)]
        size = len(self._tokens)
        ahead = (self._tokens[(place + 1 + step) % size] for step in range(size))
        return next((token for token in ahead if token != own), own)
