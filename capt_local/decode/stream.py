"""What tokens add to thoughts and answer, with stop strings cut off; what expert and base read."""

from __future__ import annotations

from collections.abc import Sequence

from capt_local.decode.stops import StopStrings
from capt_local.decode.thoughts import Part, Place, Thoughts
from capt_local.vocab.vocabulary import Vocabulary


class Stream:
    """The text of one answer as it comes.

    Args:
        vocabulary: of the leading model.
        stops: strings that end the answer; thoughts may hold them.
        thoughts: divides the stream; None where all of it is the answer.

    Attributes:
        read: what expert and base read of the last token where they do not read thoughts; None
            for nothing.
    """

    def __init__(
        self, vocabulary: Vocabulary, stops: Sequence[str], thoughts: Thoughts | None = None
    ) -> None:
        """Nothing has come yet."""
        self._vocabulary = vocabulary
        self._stops = StopStrings(stops)
        self._thoughts = thoughts
        self.read: bytes | None = None

    @property
    def apart(self) -> bool:
        """Whether what comes next may be thoughts."""
        return self._thoughts is not None and self._thoughts.apart

    @property
    def behind(self) -> bool:
        """Whether thoughts have ended and the answer has not begun."""
        return self._thoughts is not None and self._thoughts.place is Place.BEHIND

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._stops.found

    def feed(self, token: int, text: bytes) -> Part:
        """Takes the next token.

        Args:
            token: of the leading model, no end token.
            text: what it adds as text.
        """
        if self._thoughts is None:
            self.read = text
            return Part(self._stops.feed(text))
        is_text = bool(self._vocabulary.is_text[token])
        spelled = text if is_text else self._vocabulary.piece(token)
        part = self._thoughts.feed(spelled, is_text=is_text)
        waits = self._thoughts.apart and not part.text
        self.read = None if part.thought or waits else part.text
        return part if part.thought else Part(self._stops.feed(part.text))

    def flush(self, part: Part | None = None) -> Part:
        """Gives out what is held, behind the last part; what does not go with it stays `held`."""
        if self._thoughts is not None and self._thoughts.place is Place.THOUGHTS:
            text = self._thoughts.flush().text
            return Part((part.text if part else b"") + text, True)
        if part is not None and part.thought:
            return part
        return Part((part.text if part else b"") + self.held())

    def held(self) -> bytes:
        """Gives out the bytes of the answer that no part has brought."""
        if self._thoughts is not None:
            part = self._thoughts.flush()
            if part.thought:
                return self._stops.flush()
            return self._stops.feed(part.text) + self._stops.flush()
        return self._stops.flush()
