"""From tokens to text: reasoning and answer, stop strings, repetition, and the end of the output.

Markers are searched in the bytes of the output (a control token counts as its name), wherever token
boundaries lie. Reasoning comes before the answer: markers inside an answer are text.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from capt_local.prompting.messages import Prompt, ReasoningMarkers
from capt_local.tokenization import TokenKind, Vocabulary


class Section(Enum):
    """The part of the output that a stream has reached."""

    BEGINNING = "beginning"
    REASONING = "reasoning"
    GAP = "gap"  # newlines between reasoning and answer, which belong to neither
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class TextPart:
    """The bytes that a token adds to the reasoning or the answer."""

    text: bytes
    reasoning: bool = False


class ReasoningParser:
    """Splits the output into reasoning and answer.

    Args:
        markers: of the model; None if all of the output is the answer.
        opened: whether the prompt ends with the marker that begins the reasoning.

    Attributes:
        section: the part of the output reached so far.
        closer: the marker that ends the answer, if the model began the answer with a marker.
    """

    def __init__(self, markers: ReasoningMarkers | None, *, opened: bool = False) -> None:
        self.markers = markers or ReasoningMarkers((), ())
        self.closer = b""
        self.section = Section.REASONING if opened else Section.BEGINNING
        if markers is None:
            self.section = Section.ANSWER
        self._fresh = opened  # whether there was no reasoning text since the marker
        self._buffer = b""
        self._is_text = b""  # for each byte of the buffer: 1 text, 0 the name of a control token

    @property
    def in_reasoning(self) -> bool:
        """Whether the next token may belong to reasoning or to a marker."""
        return self.section is Section.REASONING or bool(self._buffer)

    @classmethod
    def for_prompt(
        cls, prompt: Prompt, vocabulary: Vocabulary, *, structured: bool
    ) -> ReasoningParser:
        """The parser of the answer to a prompt.

        Before a `structured` answer, one constrained by a schema, there is only such reasoning as
        the template has begun.
        """
        if prompt.markers is None or not prompt.segments or prompt.segments[-1].text is not None:
            return cls(None)
        scaffold = b"".join(vocabulary.piece(token) for token in prompt.segments[-1].tokens)
        opened = prompt.markers.opened_by(scaffold)
        return cls(prompt.markers if opened or not structured else None, opened=opened)

    @property
    def in_broken_marker(self) -> bool:
        """Whether reasoning is followed by a control token that begins an incomplete marker."""
        return self.section is Section.REASONING and b"\0" in self._is_text

    def expects(self, spelled: bytes) -> bool:
        """Whether the next bytes would continue or complete a marker."""
        text = self._buffer + spelled
        if self.section is Section.ANSWER:
            return False
        if self.section is Section.REASONING:
            marks = [marker for marker, _ in self.markers.within]
            found = any(marker in text for marker in marks)
            return found or any(overlap(text, marker) >= len(spelled) for marker in marks)
        return _goes_on(text.lstrip(), self._openers())

    def feed(self, spelled: bytes, *, is_text: bool) -> TextPart:
        """Takes the bytes of the next token; those of markers are dropped."""
        if self.section is Section.ANSWER:
            return TextPart(spelled if is_text else b"")
        self._buffer += spelled
        self._is_text += (b"\1" if is_text else b"\0") * len(spelled)
        if self.section is Section.REASONING:
            return self._reason()
        return self._begin()

    def flush(self) -> TextPart:
        """The rest of the buffer, at the end of the stream."""
        text = self._begin().text if self.section is Section.GAP else b""
        text += self._release(len(self._buffer))
        return TextPart(text, self.section is Section.REASONING)

    def _openers(self) -> list[bytes]:
        """The markers that may occur here, before the answer."""
        answers = [begin for begin, _ in self.markers.answers]
        if self.section is Section.GAP:
            return answers
        return [*(marker for marker, _ in self.markers.begin), *answers]

    def _begin(self) -> TextPart:
        """Handles markers before the answer, or its first bytes."""
        in_gap = self.section is Section.GAP
        if in_gap:  # newlines after reasoning are dropped
            self._release(len(self._buffer) - len(self._buffer.lstrip(b"\n")))
        front = self._buffer.lstrip()
        for marker in self._openers():
            if front.startswith(marker):
                reasons = dict(self.markers.begin).get(marker, False)
                self._pass(len(self._buffer) - len(front) + len(marker), reasons)
                self.closer = dict(self.markers.answers).get(marker, b"")
                return self._reason() if reasons else self._begin()
        if _goes_on(front, self._openers()) or not self._buffer:
            return TextPart(b"", in_gap)
        self.section = Section.ANSWER
        return TextPart(self._release(len(self._buffer)))

    def _reason(self) -> TextPart:
        """Returns reasoning up to its end marker, or up to a possible beginning of one."""
        text = b""
        while found := [
            (place, marker, reasons)
            for marker, reasons in self.markers.within
            if (place := self._buffer.find(marker)) >= 0
        ]:
            place, marker, reasons = min(found)
            text += self._released_reasoning(place)
            self._pass(len(marker), reasons)
            if not reasons:
                # A part is reasoning or answer: the answer's first bytes wait for the next token.
                return TextPart(text, True) if text else self._begin()
        keep = max(overlap(self._buffer, marker) for marker, _ in self.markers.within)
        return TextPart(text + self._released_reasoning(len(self._buffer) - keep), True)

    def _pass(self, size: int, reasons: bool) -> None:
        """Drops a marker from the front of the buffer."""
        self._release(size)
        self.section = Section.REASONING if reasons else Section.GAP
        self._fresh = True

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
    """Passes bytes through up to the first stop string; holds back a possible beginning of one.

    Attributes:
        stops: the strings, none of them empty.
        found: whether one of them has occurred.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.stops = [text.encode() for text in texts]
        self.found = False
        self._buffer = b""

    def feed(self, piece: bytes) -> bytes:
        """Takes the next bytes; returns those that certainly belong to the answer."""
        text = self._buffer + piece
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._buffer = True, b""
            return text[: min(places)]
        keep = max((overlap(text, stop) for stop in self.stops), default=0)
        self._buffer = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> bytes:
        """The rest of the buffer, at the end of the stream."""
        text, self._buffer = self._buffer, b""
        return text


# Two rules detect endless repetition. None of 1,970 human texts (notes, dialogues, questions and
# articles in twelve files, clinical and general) triggers them, by a margin. First: at least the
# last _SPAN bytes are at least _COPIES copies of one unit; in those texts such an ending has 98
# bytes at most.
_SPAN, _COPIES = 160, 3
# Second: at least _REPEATED of the last _WINDOW words end a trigram that occurred at least twice
# before; in those texts at most 26 do, in clinical ones 14. This finds loops whose copies differ
# in a word or a number. It is off for structured answers, which repeat their keys.
_WINDOW, _REPEATED = 64, 34
_TAIL = 48
_LONGEST_UNIT = 2000


class RepetitionDetector:
    """Detects endless repetition: of identical units, and with `words` also of trigrams."""

    def __init__(self, *, words: bool = True) -> None:
        self.found = False
        self._words = words
        self._end = b""
        self._word = b""  # the word that is not complete yet
        self._last: deque[bytes] = deque(maxlen=3)
        self._seen: Counter[tuple[bytes, ...]] = Counter()
        self._repeated: deque[bool] = deque(maxlen=_WINDOW)

    def feed(self, text: bytes) -> bool:
        """Takes the next bytes; returns `found`."""
        if text and not self.found:
            self._end = (self._end + text)[-_COPIES * _LONGEST_UNIT :]
            self.found = self._unit_repeats() or (self._words and self._words_repeat(text))
        return self.found

    def _unit_repeats(self) -> bool:
        end = self._end
        at = end.rfind(end[-_TAIL:], 0, len(end) - 1)
        if at < 0 or len(end) < _SPAN:
            return False
        unit = len(end) - min(_TAIL, len(end)) - at
        span = max(_SPAN, _COPIES * unit)
        return len(end) >= span and end[-span:-unit] == end[len(end) - span + unit :]

    def _words_repeat(self, text: bytes) -> bool:
        *complete, self._word = (self._word + text).replace(b"\n", b" ").split(b" ")
        for word in filter(None, complete):
            self._last.append(word)
            sequence = tuple(self._last)
            self._repeated.append(self._seen[sequence] >= 2)
            self._seen[sequence] += 1
        return sum(self._repeated) >= _REPEATED


class AnswerStream:
    """The text of one answer, fed token by token.

    Args:
        vocabulary: of the leading model.
        stops: strings that end the answer; reasoning may contain them.
        parser: finds the reasoning; None: there is none.
        turn_ends: further end tokens: those that the template writes after an answer.
        repetition: the detector; None lets repetition continue.

    Attributes:
        notices: messages for the user.
        proxy_text: the bytes that the proxies read for the last token, if they do not read
            reasoning; None: nothing.
        tokens_before: earlier tokens whose bytes `proxy_text` holds too; they were held back as
            the possible beginning of a marker.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        stops: Sequence[str],
        parser: ReasoningParser | None = None,
        turn_ends: Iterable[int] = (),
        repetition: RepetitionDetector | None = None,
    ) -> None:
        self._repetition = repetition
        self._vocabulary = vocabulary
        self._stops = StopStrings(stops)
        self._parser = parser or ReasoningParser(None)
        self._turn_ends = frozenset(turn_ends)
        self.notices: list[str] = []
        self.proxy_text: bytes | None = None
        self.tokens_before: list[int] = []
        self._unread: list[int] = []  # held back: tokens that may be part of a marker

    @property
    def in_reasoning(self) -> bool:
        """Whether the next token may belong to reasoning."""
        return self._parser.in_reasoning

    @property
    def in_gap(self) -> bool:
        """Whether the reasoning has ended and the answer has not begun."""
        return self._parser.section is Section.GAP

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._stops.found

    @property
    def repeats(self) -> bool:
        """Whether the text repeats itself without end."""
        return self._repetition is not None and self._repetition.found

    def ends(self, token: int) -> bool:
        """Whether a token ends the output here; such a token must not be fed.

        End tokens of the vocabulary or the template do, and any other control token outside
        reasoning markers; a notice names the latter.
        """
        parser, piece = self._parser, self._vocabulary.piece(token)
        if parser.expects(piece):
            return False
        if parser.in_broken_marker:
            self._note(piece, "ends behind the reasoning, before {}: no answer followed.")
            return True
        if self._vocabulary.is_end[token] or token in self._turn_ends:
            return True
        if self._vocabulary.kinds[token] != TokenKind.CONTROL:
            return False
        if piece in parser.markers:
            if piece == parser.closer:
                return True
            self._note(piece, "contains {}, a marker of reasoning, which is left out.")
            return False
        self._note(piece, "ends at the control token {}, which the model does not end turns with.")
        return True

    def _note(self, piece: bytes, what: str) -> None:
        name = "".join(chr(byte) if 32 < byte < 127 else "?" for byte in piece[:40])
        notice = "The answer " + what.format(name)
        if notice not in self.notices:
            self.notices.append(notice)

    def feed(self, token: int, text: bytes) -> TextPart:
        """Feeds the next token, which does not end the output (`ends`), and its text."""
        if self._repetition is not None:
            self._repetition.feed(text)
        is_text = bool(self._vocabulary.is_text[token])
        spelled = text if is_text else self._vocabulary.piece(token)
        part = self._parser.feed(spelled, is_text=is_text)
        if (closer := self._parser.closer) and closer not in self._stops.stops:
            self._stops.stops.append(closer)
        waits = self._parser.in_reasoning and not part.text
        self.proxy_text = None if part.reasoning or waits else part.text
        if self.proxy_text is not None:
            self.tokens_before, self._unread = self._unread, []
        elif waits and self._parser.section is not Section.REASONING:
            self._unread.append(token)
        else:
            self._unread.clear()
        return part if part.reasoning else TextPart(self._stops.feed(part.text))

    def flush(self, part: TextPart | None = None) -> TextPart:
        """The last part, with the buffered bytes appended.

        Buffered answer text is not appended to a part that is reasoning: `rest` returns it.
        """
        if self._parser.section is Section.REASONING:
            text = self._parser.flush().text
            return TextPart((part.text if part else b"") + text, True)
        if part is not None and part.reasoning:
            return part
        return TextPart((part.text if part else b"") + self.rest())

    def rest(self) -> bytes:
        """The bytes of the answer that are still buffered."""
        part = self._parser.flush()
        return (b"" if part.reasoning else self._stops.feed(part.text)) + self._stops.flush()


def _goes_on(text: bytes, markers: Iterable[bytes]) -> bool:
    """Whether a text is a prefix of a marker, or a marker a prefix of the text."""
    return any(marker.startswith(text) or text.startswith(marker) for marker in markers)


def overlap(text: bytes, marker: bytes) -> int:
    """Length of the longest suffix of a text that is a proper prefix of a marker."""
    sizes = range(min(len(marker) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(marker[:size])), 0)
