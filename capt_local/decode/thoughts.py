"""A model's thoughts apart from its answer, as both stream.

Markers are looked for in what the tokens spell, control tokens as their names, wherever the tokens
divide it. Thoughts stand at the beginning alone: a marker in the middle of an answer is text.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from capt_local.prompt.markers import Markers
from capt_local.prompt.messages import Prompt
from capt_local.vocab.vocabulary import Vocabulary


class Place(Enum):
    """Where a stream stands."""

    BEGINNING = "beginning"
    THOUGHTS = "thoughts"
    BEHIND = "behind"  # line ends between thoughts and answer belong to neither
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class Part:
    """What a token brings.

    Attributes:
        text: bytes of the thoughts or of the answer.
        thought: which of them.
    """

    text: bytes
    thought: bool = False


class Thoughts:
    """Divides one stream.

    Args:
        markers: of the model.
        opened: whether the template has opened the thoughts.

    Attributes:
        place: where the stream stands.
    """

    def __init__(self, markers: Markers, *, opened: bool) -> None:
        """Nothing has come yet."""
        self._markers = markers
        self.place = Place.THOUGHTS if opened else Place.BEGINNING
        self._fresh = opened  # whether no thought has come since the marker
        self._held = b""
        self._is_text = b""  # for each byte that is held whether it is text

    @property
    def apart(self) -> bool:
        """Whether what comes next is a thought, or may go on with a marker."""
        return self.place is Place.THOUGHTS or bool(self._held)

    @classmethod
    def of(cls, prompt: Prompt, vocabulary: Vocabulary, *, formed: bool) -> Thoughts | None:
        """For the answer to a prompt; None where it has no thoughts.

        Args:
            prompt: of the model.
            vocabulary: of the model.
            formed: whether the answer is kept to a form: only thoughts that the template has
                opened stand before it.
        """
        if prompt.markers is None or not prompt.segments or prompt.segments[-1].text is not None:
            return None
        scaffold = b"".join(vocabulary.piece(token) for token in prompt.segments[-1].tokens)
        opened = prompt.markers.opened_by(scaffold)
        return cls(prompt.markers, opened=opened) if opened or not formed else None

    def feed(self, spelled: bytes, *, is_text: bool) -> Part:
        """Takes what the next token spells; a marker itself is neither thought nor answer."""
        if self.place in (Place.ANSWER, Place.BEHIND):
            return self._answered(spelled if is_text else b"")
        self._held += spelled
        self._is_text += (b"\1" if is_text else b"\0") * len(spelled)
        if self.place is Place.BEGINNING:
            return self._begun()
        return self._thought()

    def flush(self) -> Part:
        """What is held back: no more will come."""
        text = self._release(len(self._held))
        if self.place is Place.BEHIND:
            text = text.lstrip(b"\n")
        return Part(text, self.place is Place.THOUGHTS)

    def _begun(self) -> Part:
        for marker, thinks in self._markers.begin:
            if self._held.startswith(marker):
                self._turn(marker, thinks)
                return self._thought() if thinks else self._answered(b"")
            if marker.startswith(self._held):
                return Part(b"")
        self.place = Place.ANSWER
        return self._answered(b"")

    def _thought(self) -> Part:
        """Thoughts up to what ends them, or up to what may become a marker."""
        text = b""
        while found := [
            (place, marker, thinks)
            for marker, thinks in self._markers.within
            if (place := self._held.find(marker)) >= 0
        ]:
            place, marker, thinks = min(found)
            text += self._released_thought(place)
            self._turn(marker, thinks)
            if not thinks:
                # Behind a thought, the answer's first bytes come with the next token.
                return Part(text, True) if text else self._answered(b"")
        keep = max(_overlap(self._held, marker) for marker, _ in self._markers.within)
        return Part(text + self._released_thought(len(self._held) - keep), True)

    def _turn(self, marker: bytes, thinks: bool) -> None:
        """Goes past a marker, with which what is held begins."""
        self._release(len(marker))
        self.place = Place.THOUGHTS if thinks else Place.BEHIND
        self._fresh = True

    def _answered(self, text: bytes) -> Part:
        text = self._release(len(self._held)) + text
        if self.place is Place.BEHIND:
            text = text.lstrip(b"\n")
            if text:
                self.place = Place.ANSWER
            else:
                return Part(b"", True)
        return Part(text)

    def _released_thought(self, size: int) -> bytes:
        text = self._release(size)
        if self._fresh:
            text = text.lstrip(b"\n")
            self._fresh = not text
        return text

    def _release(self, size: int) -> bytes:
        """Gives out the text among the first bytes that are held."""
        text = bytes(
            byte for byte, kept in zip(self._held[:size], self._is_text[:size], strict=True) if kept
        )
        self._held, self._is_text = self._held[size:], self._is_text[size:]
        return text


def _overlap(text: bytes, marker: bytes) -> int:
    """The longest end of a text that is a true beginning of a marker."""
    sizes = range(min(len(marker) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(marker[:size])), 0)
