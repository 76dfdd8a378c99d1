"""From tokens to text: reasoning apart from the answer, stop strings, and where the answer ends.

Markers are looked for in the bytes that tokens stand for (a control token stands for its name), at
whatever places the tokens divide them. Reasoning comes first: markers inside an answer are text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from capt_local.prompt.markers import ReasoningMarkers
from capt_local.prompt.messages import Prompt
from capt_local.vocab.vocabulary import Vocabulary


class Section(Enum):
    """The part of the output that a stream has reached."""

    BEGINNING = "beginning"
    REASONING = "reasoning"
    GAP = "gap"  # line ends between reasoning and answer belong to neither
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class TextPart:
    """What a token adds.

    Attributes:
        text: bytes of the reasoning or of the answer.
        reasoning: which of them.
    """

    text: bytes
    reasoning: bool = False


class ReasoningParser:
    """Divides one stream into reasoning and answer.

    Args:
        markers: of the model.
        opened: whether the template has already written the marker that opens the reasoning.

    Attributes:
        section: what the stream has reached.
    """

    def __init__(self, markers: ReasoningMarkers, *, opened: bool) -> None:
        self._markers = markers
        self.section = Section.REASONING if opened else Section.BEGINNING
        self._fresh = opened  # whether no reasoning has come since the marker
        self._buffer = b""
        self._is_text = b""  # for each byte of the buffer: 1 text, 0 the name of a control token

    @property
    def in_reasoning(self) -> bool:
        """Whether the next token may belong to reasoning or to a marker."""
        return self.section is Section.REASONING or bool(self._buffer)

    @classmethod
    def for_prompt(
        cls, prompt: Prompt, vocabulary: Vocabulary, *, structured: bool
    ) -> ReasoningParser | None:
        """For the answer to a prompt; None where all of the output is the answer.

        Args:
            prompt: of the model.
            vocabulary: of the model.
            structured: whether a grammar constrains the answer. Then only reasoning that the
                template has opened comes before it.
        """
        if prompt.markers is None or not prompt.segments or prompt.segments[-1].text is not None:
            return None
        scaffold = b"".join(vocabulary.piece(token) for token in prompt.segments[-1].tokens)
        opened = prompt.markers.opened_by(scaffold)
        return cls(prompt.markers, opened=opened) if opened or not structured else None

    def feed(self, spelled: bytes, *, is_text: bool) -> TextPart:
        """Takes the bytes of the next token; those of markers are dropped."""
        if self.section in (Section.ANSWER, Section.GAP):
            return self._answer(spelled if is_text else b"")
        self._buffer += spelled
        self._is_text += (b"\1" if is_text else b"\0") * len(spelled)
        if self.section is Section.BEGINNING:
            return self._begin()
        return self._reason()

    def flush(self) -> TextPart:
        """The rest of the buffer, at the end of the stream."""
        text = self._release(len(self._buffer))
        if self.section is Section.GAP:
            text = text.lstrip(b"\n")
        return TextPart(text, self.section is Section.REASONING)

    def _begin(self) -> TextPart:
        for marker, reasons in self._markers.begin:
            if self._buffer.startswith(marker):
                self._pass(marker, reasons)
                return self._reason() if reasons else self._answer(b"")
            if marker.startswith(self._buffer):
                return TextPart(b"")
        self.section = Section.ANSWER
        return self._answer(b"")

    def _reason(self) -> TextPart:
        """Reasoning up to its end marker, or up to what may become one."""
        text = b""
        while found := [
            (place, marker, reasons)
            for marker, reasons in self._markers.within
            if (place := self._buffer.find(marker)) >= 0
        ]:
            place, marker, reasons = min(found)
            text += self._released_reasoning(place)
            self._pass(marker, reasons)
            if not reasons:
                # Behind reasoning, the first bytes of the answer come with the next token.
                return TextPart(text, True) if text else self._answer(b"")
        keep = max(overlap(self._buffer, marker) for marker, _ in self._markers.within)
        return TextPart(text + self._released_reasoning(len(self._buffer) - keep), True)

    def _pass(self, marker: bytes, reasons: bool) -> None:
        """Drops a marker from the front of the buffer."""
        self._release(len(marker))
        self.section = Section.REASONING if reasons else Section.GAP
        self._fresh = True

    def _answer(self, text: bytes) -> TextPart:
        text = self._release(len(self._buffer)) + text
        if self.section is Section.GAP:
            text = text.lstrip(b"\n")
            if text:
                self.section = Section.ANSWER
            else:
                return TextPart(b"", True)
        return TextPart(text)

    def _released_reasoning(self, size: int) -> bytes:
        text = self._release(size)
        if self._fresh:
            text = text.lstrip(b"\n")
            self._fresh = not text
        return text

    def _release(self, size: int) -> bytes:
        """Removes bytes from the front of the buffer and returns those that are text."""
        pairs = zip(self._buffer[:size], self._is_text[:size], strict=True)
        text = bytes(byte for byte, is_text in pairs if is_text)
        self._buffer, self._is_text = self._buffer[size:], self._is_text[size:]
        return text


class StopStrings:
    """Passes bytes through until a stop string comes; buffers what might begin one.

    Args:
        texts: the strings, none of them empty.

    Attributes:
        found: whether one of them has come.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._stops = [text.encode() for text in texts]
        self.found = False
        self._buffer = b""

    def feed(self, piece: bytes) -> bytes:
        """Takes the next bytes; returns those that certainly belong to the answer."""
        text = self._buffer + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._buffer = True, b""
            return text[: min(places)]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._buffer = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> bytes:
        """The rest of the buffer, at the end of the stream."""
        text, self._buffer = self._buffer, b""
        return text


class AnswerStream:
    """The text of one answer as its tokens come.

    Args:
        vocabulary: of the leading model.
        stops: strings that end the answer; reasoning may contain them.
        parser: finds the reasoning; None where all of the output is the answer.

    Attributes:
        proxy_text: what proxies read of the last token where they do not read reasoning; None
            for nothing.
    """

    def __init__(
        self, vocabulary: Vocabulary, stops: Sequence[str], parser: ReasoningParser | None = None
    ) -> None:
        self._vocabulary = vocabulary
        self._stops = StopStrings(stops)
        self._parser = parser
        self.proxy_text: bytes | None = None

    @property
    def in_reasoning(self) -> bool:
        """Whether the next token may belong to reasoning."""
        return self._parser is not None and self._parser.in_reasoning

    @property
    def in_gap(self) -> bool:
        """Whether the reasoning has ended and the answer has not begun."""
        return self._parser is not None and self._parser.section is Section.GAP

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._stops.found

    def ends(self, token: int) -> bool:
        """Whether a token ends the output here; such a token is not fed."""
        return bool(self._vocabulary.is_end[token])

    def feed(self, token: int, text: bytes) -> TextPart:
        """Takes the next token.

        Args:
            token: of the leading model, not one that `ends` the output.
            text: what it adds as text.
        """
        if self._parser is None:
            self.proxy_text = text
            return TextPart(self._stops.feed(text))
        is_text = bool(self._vocabulary.is_text[token])
        spelled = text if is_text else self._vocabulary.piece(token)
        part = self._parser.feed(spelled, is_text=is_text)
        waits = self._parser.in_reasoning and not part.text
        self.proxy_text = None if part.reasoning or waits else part.text
        return part if part.reasoning else TextPart(self._stops.feed(part.text))

    def flush(self, part: TextPart | None = None) -> TextPart:
        """The last part with the rest of the buffers behind it.

        Answer text behind a part that is reasoning does not go into it: `rest` has that.
        """
        if self._parser is not None and self._parser.section is Section.REASONING:
            text = self._parser.flush().text
            return TextPart((part.text if part else b"") + text, True)
        if part is not None and part.reasoning:
            return part
        return TextPart((part.text if part else b"") + self.rest())

    def rest(self) -> bytes:
        """The bytes of the answer that no part has brought."""
        if self._parser is not None:
            part = self._parser.flush()
            if part.reasoning:
                return self._stops.flush()
            return self._stops.feed(part.text) + self._stops.flush()
        return self._stops.flush()


def overlap(text: bytes, marker: bytes) -> int:
    """Length of the longest end of a text that is a proper beginning of a marker."""
    sizes = range(min(len(marker) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(marker[:size])), 0)
