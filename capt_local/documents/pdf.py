"""PDF to text by PDFium, page by page."""

from __future__ import annotations

import re

import pypdfium2 as pdfium
from pypdfium2 import raw

from capt_local.documents.document import Found, Refused, raised

_MOST_PAGES = 2000
# PDFium marks a hyphen at the end of a line in one of these ways: the word goes on in the next one.
_BROKEN_WORD = re.compile("(\\w+)(?:\x02|\ufffe|\xad)(?:\r?\n)?(\\w*)")
_SMALL = 0.9  # of the size of the character before
_HIGHER = 0.15  # of that size
_NEAR = 0.6  # likewise


def read(data: bytes, codec: str | None, found: Found) -> None:
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
        text = _text(text_page)
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


def _text(page: pdfium.PdfTextPage) -> str:
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
