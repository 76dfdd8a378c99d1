"""Whether an answer has begun to repeat itself without end.

Two rules, both chosen so that nothing people wrote in twelve files of clinical and general text
(1,970 notes, dialogues, questions and articles) breaks them, by a margin:

- The last `SPAN` bytes or more are one unit, `COPIES` times or more. Longest such end in those
  texts: 98 bytes.
- Of the last `WINDOW` words, at least `REPEATED` end a sequence of three words that came at least
  twice before. Most in those texts: 26, in clinical ones 14. This finds loops whose turns differ
  in a word or a number. It is not for structured answers, which repeat their keys.
"""

from __future__ import annotations

from collections import Counter, deque

SPAN, COPIES = 160, 3
WINDOW, REPEATED = 64, 34
_TAIL = 48
_LONGEST_UNIT = 2000


class RepetitionDetector:
    """Reads one text as it comes.

    Args:
        words: whether the rule about words is applied.

    Attributes:
        found: whether the text repeats itself.
    """

    def __init__(self, *, words: bool = True) -> None:
        self.found = False
        self._words = words
        self._end = b""
        self._word = b""  # the word that is not complete yet
        self._last: deque[bytes] = deque(maxlen=3)
        self._seen: Counter[tuple[bytes, ...]] = Counter()
        self._repeated: deque[bool] = deque(maxlen=WINDOW)

    def feed(self, text: bytes) -> bool:
        """Takes the next bytes; returns `found`."""
        if text and not self.found:
            self._end = (self._end + text)[-COPIES * _LONGEST_UNIT :]
            self.found = self._unit_repeats() or (self._words and self._words_repeat(text))
        return self.found

    def _unit_repeats(self) -> bool:
        end = self._end
        at = end.rfind(end[-_TAIL:], 0, len(end) - 1)
        if at < 0 or len(end) < SPAN:
            return False
        unit = len(end) - min(_TAIL, len(end)) - at
        span = max(SPAN, COPIES * unit)
        return len(end) >= span and end[-span:-unit] == end[len(end) - span + unit :]

    def _words_repeat(self, text: bytes) -> bool:
        *complete, self._word = (self._word + text).replace(b"\n", b" ").split(b" ")
        for word in filter(None, complete):
            self._last.append(word)
            sequence = tuple(self._last)
            self._repeated.append(self._seen[sequence] >= 2)
            self._seen[sequence] += 1
        return sum(self._repeated) >= REPEATED
