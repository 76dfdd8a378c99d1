r"""Output as plain values: sanitised text, marked text, panes, tables.

A terminal interprets escape sequences: text can write the clipboard (OSC 52), hide links (OSC 8),
overwrite earlier output, or reverse its direction. Here every such character is escaped visibly
(`\x1b`, `\u202e`); nothing is dropped, so no text is lost without a trace.

Verbs build views; `plain` and `drawing` turn them into characters. No view holds a style or an
escape sequence, and no text in it has to be safe: both renderers sanitise.
"""

from __future__ import annotations

import codecs
import textwrap
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

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
    """Text with every control, direction and invisible character escaped visibly.

    Newline and tab stay. The result holds no C0, C1, DEL, bidi control, tag or surrogate.
    """
    return text.translate(_VISIBLE)


def visible_line(text: str) -> str:
    """The same on one line: newline and tab are escaped too."""
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
        """The text that `piece` completes; the start of a character is held back."""
        return visible(self._decode(piece))

    def flush(self) -> str:
        """What was held back, as U+FFFD: the stream ended inside a character."""
        return visible(self._decode(b"", True))


_WIDTH = 100


@dataclass(frozen=True, slots=True)
class TerminalInfo:
    """The capabilities of a terminal; bold and underline are assumed."""

    width: int = 80
    colour: bool = False
    encoding: str = "utf-8"  # decides about lines and blocks


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text, marked (bold and underlined) or not."""

    text: str
    marked: bool = False


Line = tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph of our own text, wrapped when it is rendered."""

    line: Line
    strong: bool = False

    @classmethod
    def of(cls, text: str, *, strong: bool = False) -> Prose:
        """A paragraph without marks."""
        return cls((Span(text),), strong)


@dataclass(frozen=True, slots=True)
class Pane:
    """A text in a frame, with a title above and a line about it below; its line ends stay."""

    title: str
    body: Line
    foot: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, of the same length each."""

    title: str  # above it; may be empty
    rows: tuple[tuple[str, ...], ...]
    headings: tuple[str, ...] = ()  # of the columns; empty for names and values
    right: tuple[int, ...] = ()  # columns that are aligned at their right end


@dataclass(frozen=True, slots=True)
class Beside:
    """Two texts that stand side by side where there is space, else one under the other."""

    left: Pane
    right: Pane


View = Prose | Pane | Table | Beside


def tidy(line: Iterable[Span]) -> Line:
    """The same text with neighbouring marks joined and the white space around them left out."""
    joined: list[Span] = []
    for span in line:
        if joined and joined[-1].marked == span.marked:
            joined[-1] = Span(joined[-1].text + span.text, span.marked)
        else:
            joined.append(span)
    parts: list[Span] = []
    for span in joined:
        core = span.text.strip()
        if span.marked and core:
            before, after = span.text.split(core, 1)
            parts += [Span(before), Span(core, True), Span(after)]
        else:  # a changed line end or blank is still a change
            parts.append(span)
    return tuple(part for part in parts if part.text)


def plain(view: View) -> list[str]:
    """The lines of a view; what is marked stands in [brackets]."""
    match view:
        case Prose():
            words = " ".join(_marked(view.line).split())
            return textwrap.wrap(words, _WIDTH, break_long_words=False, break_on_hyphens=False)
        case Pane():
            foot = [f"  ({visible_line(view.foot)})"] if view.foot else []
            body = [f"  {line}".rstrip() for line in _marked(view.body).split("\n")]
            return [f"{visible_line(view.title)}:", *body, *foot]
        case Table():
            title = [visible_line(view.title)] if view.title else []
            return [*title, *(f"{'  ' * bool(title)}{line}" for line in _columns(view))]
        case Beside():
            return [*plain(view.left), "", *plain(view.right)]


def cells(text: str) -> int:
    """Columns that a text takes on a terminal: wide characters two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _marked(line: Line) -> str:
    # A mark that crosses a line end would look like an open bracket.
    return "".join(
        "\n".join(f"[{part}]" if part else "" for part in visible(span.text).split("\n"))
        if span.marked
        else visible(span.text)
        for span in tidy(line)
    )


def _columns(table: Table) -> list[str]:
    rows = [*([table.headings] if table.headings else []), *table.rows]
    shown = [[visible_line(cell) for cell in row] for row in rows]
    widths = [max(map(cells, column)) for column in zip(*shown, strict=True)]
    lines = []
    for row in shown:
        gaps = [" " * (width - cells(cell)) for cell, width in zip(row, widths, strict=True)]
        parts = (
            gap + cell if place in table.right else cell + gap
            for place, (cell, gap) in enumerate(zip(row, gaps, strict=True))
        )
        lines.append("  ".join(parts).rstrip())
    return lines
