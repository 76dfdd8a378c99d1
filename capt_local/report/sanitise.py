r"""Model text made safe for a terminal.

A terminal obeys escape sequences: text can write the clipboard (OSC 52), hide links (OSC 8),
overwrite what was said, or turn its direction around. Here every such character becomes visible
instead (`\x1b`, `\u202e`); nothing is dropped, so no text is lost without a trace.
"""

from __future__ import annotations

import codecs

# Formatting characters that reorder or hide text. U+200C and U+200D stay: Persian, Hindi and
# emoji need them, and they cannot reorder anything.
_HIDDEN_RANGES = (
    (0x00AD, 0x00AD),  # soft hyphen
    (0x061C, 0x061C),  # Arabic letter mark
    (0x180E, 0x180E),  # Mongolian vowel separator
    (0x200B, 0x200B),  # zero-width space
    (0x200E, 0x200F),  # left-to-right and right-to-left mark
    (0x2028, 0x202E),  # line and paragraph separators, bidi embeddings and overrides
    (0x2060, 0x206F),  # word joiner, invisible operators, bidi isolates
    (0xD800, 0xDFFF),  # lone surrogates
    (0xFEFF, 0xFEFF),  # byte order mark
    (0xFFF9, 0xFFFB),  # interlinear annotation
    (0xE0000, 0xE007F),  # tag characters
)


def _visible_table() -> dict[int, str]:
    controls = [*range(0x20), *range(0x7F, 0xA0)]
    table = {code: f"\\x{code:02x}" for code in controls if code not in (0x09, 0x0A)}
    for first, last in _HIDDEN_RANGES:
        for code in range(first, last + 1):
            table[code] = f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
    return table


_VISIBLE = _visible_table()


def visible(text: str) -> str:
    """Text in which every character that a terminal would obey is spelled out.

    Newline and tab stay. The result holds no C0, C1, DEL, bidi control, tag or surrogate.
    """
    return text.translate(_VISIBLE)


def visible_line(text: str) -> str:
    """The same on one line: newline and tab are spelled out too."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


class Sanitiser:
    """Turns a stream of token bytes into text that is safe to show.

    Characters may be split between tokens, so the state is kept from one call to the next: the
    text is the same wherever the stream is cut. Bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(self) -> None:
        """Starts between two characters."""
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def feed(self, piece: bytes) -> str:
        """The text that is certain after `piece`; the start of a character is held back."""
        return visible(self._decode(piece))

    def flush(self) -> str:
        """What was held back, as U+FFFD: the stream ended inside a character."""
        return visible(self._decode(b"", True))
