"""RTF to text: groups, code pages, Unicode, tables as rows, footnotes at the end.

A reader of its own, since the libraries for it drop footnotes and headers and show hidden text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from capt_local.documents.document import Found, Refused, raised

_TOKEN = re.compile(
    rb"\\([a-zA-Z]{1,32})(-?\d{1,10})? ?|\\'([0-9a-fA-F]{2})|\\([^a-zA-Z])|([{}])|([\r\n]+)"
    rb"|([^\\{}\r\n]+)",
    re.DOTALL,
)
_DEEPEST = 2000
_TEXT = {
    "par": "\n", "sect": "\n", "page": "\n", "line": "\n", "row": "\n", "nestrow": "\n",
    "tab": "\t", "cell": " | ", "nestcell": " | ", "emdash": "—", "endash": "–", "emspace": " ",
    "enspace": " ", "qmspace": " ", "bullet": "•", "lquote": "‘", "rquote": "’",
    "ldblquote": "“", "rdblquote": "”",
}  # fmt: skip
_SYMBOLS = {"~": " ", "_": "-", "-": "", "\n": "\n", "\r": "\n", "{": "{", "}": "}", "\\": "\\"}
# Groups that hold no text of the document.
_SKIPPED = frozenset(
    ("fonttbl", "colortbl", "stylesheet", "info", "pict", "object", "themedata", "xmlnstbl",
     "fldinst", "listtable", "listoverridetable", "rsidtbl", "generator", "latentstyles",
     "datastore", "atnid", "atnauthor", "annotation", "bkmkstart", "bkmkend", "ftnsep", "ftnsepc",
     "aftnsep", "aftnsepc", "filetbl", "revtbl", "pgdsctbl", "mmathPr", "shpinst", "sp", "xe", "tc",
     "template", "docvar")
)  # fmt: skip
_KEPT = frozenset(("shptxt", "pn", "shpinst", "footnote"))  # marked as skippable, but hold text
_FORMATS = {"v": "hidden", "deleted": "deleted", "super": "super", "up": "super"}
_HEADERS = frozenset(("header", "headerl", "headerr", "headerf"))
_FOOTERS = frozenset(("footer", "footerl", "footerr", "footerf"))
# Code pages of \fcharset.
_CHARSETS = {
    0: "cp1252", 77: "mac_roman", 128: "cp932", 129: "cp949", 130: "johab", 134: "gb2312",
    136: "big5", 161: "cp1253", 162: "cp1254", 163: "cp1258", 177: "cp1255", 178: "cp1256",
    186: "cp1257", 204: "cp1251", 222: "cp874", 238: "cp1250", 255: "cp437",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _State:
    """What a group inherits: where text goes, whether any does, and how bytes are decoded."""

    sink: str = "body"
    skip: bool = False
    hidden: bool = False
    deleted: bool = False
    super: bool = False
    codec: str = ""
    unicode_skip: int = 1


class _Reader:
    def __init__(self, data: bytes, found: Found) -> None:
        self._data, self._found = data, found
        self._texts: dict[str, list[str]] = {"header": [], "body": [], "notes": [], "footer": []}
        self._state, self._stack = _State(), [_State()]
        self._fonts: dict[int, str] = {}
        self._font = 0
        self._codec = "cp1252"
        self._bytes = bytearray()  # of characters that may take several
        self._skip = 0  # fallback characters left behind \u
        self._star = False  # the next word may be of a group that can be left out
        self._high = 0  # the first half of a character beyond 16 bits
        self._notes = 0

    def read(self) -> None:
        data, at = self._data, 0
        while at < len(data) and (match := _TOKEN.match(data, at)):
            at = match.end()
            word, number, hexes, symbol, brace, _, plain = match.groups()
            if plain is not None or hexes is not None:
                self._characters(plain if hexes is None else bytes.fromhex(hexes.decode()))
                continue
            self._flush()
            if brace == b"{":
                if len(self._stack) > _DEEPEST:
                    raise Refused("deep")
                self._stack.append(self._state)
            elif brace == b"}":
                self._state = self._stack.pop() if len(self._stack) > 1 else self._state
                self._star = False
                if len(self._stack) == 1:
                    break  # what stands behind the document is not part of it
            elif symbol is not None:
                self._star = symbol == b"*"
                self._write(_SYMBOLS.get(symbol.decode("latin-1"), ""))
            elif word is not None:
                value = None if number is None else int(number)
                if word == b"bin":
                    at += max(0, value or 0)
                self._word(word.decode(), value)
                self._star = False
        self._flush()
        if len(self._stack) > 1 or (at < len(data) and not match):
            raise Refused("damaged")
        parts = ["".join(self._texts[name]) for name in ("header", "body", "notes", "footer")]
        # A row ends with a cell.
        self._found.pages.append(re.sub(r" \| *\n", "\n", "\n".join(filter(str.strip, parts))))

    def _characters(self, data: bytes) -> None:
        taken = min(self._skip, len(data))
        self._skip -= taken
        self._bytes += data[taken:]

    def _flush(self) -> None:
        if self._bytes:
            codec = self._state.codec or self._codec
            self._write(self._bytes.decode(codec, "replace"))
            self._bytes.clear()

    def _write(self, text: str) -> None:
        state = self._state
        if not text or state.skip:
            return
        for on, name in ((state.hidden, "hidden"), (state.deleted, "deleted")):
            if on:
                if text.strip():
                    self._found.note(name)
                return
        texts = self._texts[state.sink]
        texts.append(raised("".join(texts[-1:]), text) if state.super else text)

    def _word(self, word: str, value: int | None) -> None:
        state = self._state
        if word == "u" and value is not None:
            self._unicode(value % 0x10000)
            self._skip = state.unicode_skip
            return
        self._skip = 0
        if word == "uc":
            self._state = replace(state, unicode_skip=max(0, value or 0))
        elif word == "ansicpg" and value is not None:
            self._codec = _known_codec(f"cp{value}") or self._codec
        elif word in ("mac", "pc", "pca"):
            self._codec = {"mac": "mac_roman", "pc": "cp437", "pca": "cp850"}[word]
        elif word == "f" and value is not None:
            self._font = value
            self._state = replace(state, codec=self._fonts.get(value, "") or state.codec)
        elif word == "fcharset" and value is not None and state.sink == "fonts":
            self._fonts[self._font] = _CHARSETS.get(value, "")
        elif word == "plain":
            self._state = replace(state, hidden=False, deleted=False, super=False)
        elif word in _FORMATS:
            on: dict[str, Any] = {_FORMATS[word]: value != 0}
            self._state = replace(state, **on)
        elif word in ("nosupersub", "sub"):
            self._state = replace(state, super=False)
        elif word == "fonttbl":
            self._state = replace(state, skip=True, sink="fonts")
        elif word in _HEADERS or word in _FOOTERS:
            self._begin("header" if word in _HEADERS else "footer")
        elif word == "footnote":
            self._notes += 1
            self._write(f"[{self._notes}]")
            self._begin("notes")
            self._write(f"[{self._notes}] ")
        elif word in _SKIPPED or (self._star and word not in _KEPT):
            if word == "annotation":
                self._found.note("comments")
            self._state = replace(state, skip=word not in _KEPT or state.skip)
        elif text := _TEXT.get(word):
            self._write(text)

    def _begin(self, sink: str) -> None:
        """Text of the group goes elsewhere, on a line of its own."""
        self._state = replace(self._state, sink=sink)
        self._write("\n" if self._texts[sink] else "")

    def _unicode(self, code: int) -> None:
        if 0xD800 <= code < 0xDC00:
            self._high = code
        elif 0xDC00 <= code < 0xE000 and self._high:
            self._write(chr(0x10000 + ((self._high - 0xD800) << 10) + code - 0xDC00))
            self._high = 0
        else:
            self._write(chr(code))


def _known_codec(name: str) -> str | None:
    try:
        b"".decode(name)
    except LookupError:
        return "utf-8" if name == "cp65001" else None
    return name


def read(data: bytes, codec: str | None, found: Found) -> None:
    """Finds the text of an RTF document: headers, body, footnotes, footers."""
    _Reader(data, found).read()
