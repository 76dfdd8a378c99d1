"""HTML to text: blocks as lines, rows of tables as lines, nothing of scripts and styles."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from capt_local.documents.document import Found, Refused, raised

_BLOCKS = frozenset(
    ("address", "article", "aside", "blockquote", "br", "caption", "dd", "div", "dl", "dt",
     "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr",
     "li", "main", "nav", "ol", "p", "pre", "section", "table", "title", "tr", "ul")
)  # fmt: skip
_SKIPPED = frozenset(("script", "style", "template", "noscript", "svg", "math", "object", "iframe"))
_EMPTY = frozenset(("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta",
                    "source", "track", "wbr"))  # fmt: skip
_CHARSET = re.compile(rb"""<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*["']?([\w.:-]+)""")
_INVISIBLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden")
_DEEPEST = 2000


def read(data: bytes, codec: str | None, found: Found) -> None:
    """Finds the text of a page; its encoding is what it declares, else UTF-8."""
    declared = _CHARSET.search(data[:2048].lower())
    name = codec or (declared[1].decode() if declared else "utf-8")
    try:
        # As browsers do: what is called Latin-1 is Windows-1252.
        text = data.decode("windows-1252" if name in ("iso-8859-1", "latin1", "us-ascii") else name)
    except (UnicodeDecodeError, LookupError):
        raise Refused("encoding") from None
    parser = _Page(found)
    parser.feed(text)
    parser.close()
    found.pages.append("".join(parser.parts))


class _Page(HTMLParser):
    """Writes the text of what is shown to `parts`."""

    def __init__(self, found: Found) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._found = found
        self._open: list[tuple[str, bool]] = []  # elements, and whether they are shown
        self._cells = self._pre = 0

    @property
    def _shown(self) -> bool:
        return not self._open or self._open[-1][1]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        hidden = "hidden" in values or _INVISIBLE.search((values.get("style") or "").lower())
        if hidden and self._shown:
            self._found.note("hidden")
        if self._shown and tag not in _SKIPPED and not hidden:
            self._begin(tag)
        if tag not in _EMPTY:
            if len(self._open) >= _DEEPEST:
                raise Refused("deep")
            self._open.append((tag, self._shown and tag not in _SKIPPED and not hidden))

    def _begin(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._end_line()
        if tag == "li":
            self.parts.append("- ")
        elif tag == "tr":
            self._cells = 0
        elif tag in ("td", "th"):
            self.parts.append(" | " if self._cells else "")
            self._cells += 1
        self._pre += tag == "pre"

    def _end_line(self) -> None:
        """A line ends; not inside a cell, so that a row is one line, nor behind a bullet."""
        if any(name in ("td", "th") for name, _ in self._open[-8:]):
            self.parts.append(" ")
        elif self.parts and self.parts[-1] != "- ":
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if not any(name == tag for name, _ in self._open):
            return
        while self._open:  # what was not closed ends with it
            name, shown = self._open.pop()
            self._pre -= name == "pre" and shown
            if name in _BLOCKS and shown:
                self._end_line()
            if name == tag:
                break

    def handle_data(self, data: str) -> None:
        if not self._shown:
            return
        if self._pre:
            self.parts.append(data)
            return
        if self._open and self._open[-1][0] == "sup":
            data = raised("".join(self.parts[-1:]), data)
        words = re.sub(r"[ \t\r\n\f]+", " ", data)
        # A paragraph in a cell does not break the row.
        at_start = not self.parts or self.parts[-1].endswith(("\n", " "))
        if words := words.lstrip(" ") if at_start else words:
            self.parts.append(words)
