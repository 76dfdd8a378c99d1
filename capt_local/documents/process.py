"""The process that parses one document: it confines itself, reads, answers, and ends.

PDF and HTML are read here: PDF by PDFium, page by page; of HTML blocks and rows of tables become
lines, and nothing stays of scripts and styles.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser

import msgspec
import pypdfium2 as pdfium
from pypdfium2 import raw

from capt_local.documents.document import Found, Refused, Reply, raised, tidy
from capt_local.hardening import confine, detach_standard_streams, limit_memory, prefer_oom_kill

MOST_CHARACTERS = 8 << 20
_MEMORY = 1 << 30  # bytes beyond what the program itself takes


def serve() -> None:
    """Reads a request from standard input, and answers on standard output."""
    prefer_oom_kill()
    # Everything is imported before the process is confined.
    from capt_local.documents import formats

    readers: dict[str, Callable[[bytes, str | None, Found], None]] = {
        "pdf": read_pdf,
        "docx": formats.read_docx,
        "odt": formats.read_odt,
        "rtf": formats.read_rtf,
        "html": read_html,
    }
    incoming, outgoing = detach_standard_streams()
    limit_memory(_MEMORY)
    if not confine() and sys.platform == "linux":
        outgoing.write(b"unconfined")
    else:
        kind, codec, size = incoming.readline(100).decode().split()
        data = incoming.read(int(size))
        outgoing.write(_answer(readers[kind], data, None if codec == "-" else codec))
    outgoing.flush()


def _answer(reader: Callable[..., None], data: bytes, codec: str | None) -> bytes:
    found = Found()
    try:
        reader(data, codec, found)
        return _reply(found)
    except Refused as error:
        reason = str(error)
    except MemoryError:
        reason = "memory"
    except RecursionError:
        reason = "deep"
    except Exception:  # what a parser trips over; the text of such an error may hold a note's
        reason = "damaged"
    return msgspec.json.encode(Reply(refused=reason))


def _reply(found: Found) -> bytes:
    pages = [tidy(page) for page in found.pages]
    if sum(map(len, pages)) > MOST_CHARACTERS:
        raise Refused("long")
    if not any(pages):
        raise Refused("scan" if found.paged else "empty")
    blank = sum(not page for page in pages)
    if found.paged and blank:
        found.note("blank", blank)
    spans, at = [], 0
    for page in pages:
        spans.append((at, at + len(page)))
        at += len(page) + 2
    notices = list(found.notices.items())
    reply = Reply(text="\n\n".join(pages), pages=spans if found.paged else [], notices=notices)
    return msgspec.json.encode(reply)


# --- PDF -----------------------------------------------------------------------------------------

_MOST_PAGES = 2000
# PDFium marks a hyphen at the end of a line in one of these ways: the word goes on in the next one.
_BROKEN_WORD = re.compile("(\\w+)(?:\x02|\ufffe|\xad)(?:\r?\n)?(\\w*)")
_SMALL = 0.9  # of the size of the character before
_HIGHER = 0.15  # of that size
_NEAR = 0.6  # likewise


def read_pdf(data: bytes, codec: str | None, found: Found) -> None:
    """Finds the text of each page, values of form fields included."""
    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError:
        locked = raw.FPDF_GetLastError() in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY)
        raise Refused("password" if locked else "damaged") from None
    if len(document) > _MOST_PAGES:
        raise Refused("pages")
    found.paged = True
    for number in range(len(document)):
        page = document[number]
        # Annotations, filled fields among them, become part of the page.
        if raw.FPDFPage_GetAnnotCount(page) and raw.FPDFPage_Flatten(page, raw.FLAT_NORMALDISPLAY):
            page.close()
            page = document[number]
        text_page = page.get_textpage()
        text = _page_text(text_page)
        text = re.sub("(?m)^[\ue000-\uf8ff](?=\\s)", "-", text)  # bullets of symbol fonts
        unmapped = sum("\ue000" <= char <= "\uf8ff" or char == "\ufffd" for char in text)
        if unmapped:
            found.note("unmapped", unmapped)
        found.pages.append(text)
        text_page.close()
        page.close()
    whole = " ".join(found.pages).lower()

    def joined(match: re.Match[str]) -> str:
        """Without the hyphen, unless the document writes this word with one elsewhere."""
        hyphenated, word = f"{match[1]}-{match[2]}", match[1] + match[2]
        keep = hyphenated.lower() in whole and word.lower() not in whole
        return hyphenated if keep else word

    found.pages = [_BROKEN_WORD.sub(joined, page) for page in found.pages]


def _page_text(page: pdfium.PdfTextPage) -> str:
    """The text of a page; raised digits are marked, since 10\u2079 must not become 109."""
    chars = [chr(raw.FPDFText_GetUnicode(page, i)) for i in range(raw.FPDFText_CountChars(page))]
    for place in range(1, len(chars) - 2):
        # PDFium breaks lines around what is raised.
        if chars[place] == "\r" and _goes_on(page, place - 1, place + 2):
            chars[place] = chars[place + 1] = ""
    places = [place for place, char in enumerate(chars) if char]
    text = "".join(chars)
    parts, at = [], 0
    for match in re.finditer(r"(?<=\S)\d+", text):
        # A number may go on, smaller, in its exponent.
        for i in range(*match.span()):
            if _is_raised(page, places[i - 1], places[i]):
                parts += [text[at:i], raised(text[:i], text[i : match.end()])]
                at = match.end()
                break
    whole = "".join((*parts, text[at:]))
    return whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _is_raised(page: pdfium.PdfTextPage, before: int, index: int) -> bool:
    """Whether a character is smaller than the one before it, and stands higher."""
    size = raw.FPDFText_GetFontSize(page, before)
    if raw.FPDFText_GetFontSize(page, index) > _SMALL * size:
        return False
    rise = page.get_charbox(index)[1] - page.get_charbox(before)[1]  # of the lower edges
    return bool(rise > _HIGHER * size)


def _goes_on(page: pdfium.PdfTextPage, before: int, after: int) -> bool:
    """Whether a character stands right behind another one, higher or lower by a part of a line."""
    size = max(raw.FPDFText_GetFontSize(page, i) for i in (before, after))
    _, low, right, _ = page.get_charbox(before)
    left, other_low, _, _ = page.get_charbox(after)
    return bool(abs(left - right) < _NEAR * size and abs(low - other_low) < _NEAR * size)


# --- HTML ----------------------------------------------------------------------------------------

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
_DEEPEST_HTML = 2000


def read_html(data: bytes, codec: str | None, found: Found) -> None:
    """Finds the text of a page; its encoding is what it declares, else UTF-8."""
    declared = _CHARSET.search(data[:2048].lower())
    name = codec or (declared[1].decode() if declared else "utf-8")
    try:
        # As browsers do: what is called Latin-1 is Windows-1252.
        text = data.decode("windows-1252" if name in ("iso-8859-1", "latin1", "us-ascii") else name)
    except (UnicodeDecodeError, LookupError):
        raise Refused("encoding") from None
    parser = _Page(found)
    parser.feed(_closed(text))
    parser.close()
    found.pages.append("".join(parser.parts))


def _closed(text: str) -> str:
    """Escapes unclosed comments and tags: the parser would search for their ends repeatedly."""
    for begin, end in (("<!--", "-->"), ("<![", "]"), ("<", ">")):
        at = text.rfind(end) + 1
        text = text[:at] + text[at:].replace(begin, f"&lt;{begin[1:]}")
    return text


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
            if len(self._open) >= _DEEPEST_HTML:
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
