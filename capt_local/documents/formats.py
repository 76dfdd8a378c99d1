"""DOCX, ODT and RTF to text: paragraphs and rows of tables as lines, headers, notes at the end.

RTF has a reader of its own, since the libraries for it drop footnotes and headers and show hidden
text.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from capt_local.documents.document import Found, Refused, raised

_MOST_XML = 64 << 20  # bytes of one part
_MOST_PARTS = 10_000
_DEEPEST_ELEMENT = 400
_RAISED = "\0"  # marks superscript text until the text before it is known


def _archive(data: bytes) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(BytesIO(data))
    except (zipfile.BadZipFile, ValueError):
        raise Refused("damaged") from None
    if len(archive.infolist()) > _MOST_PARTS:
        raise Refused("bomb")
    return archive


def _part(archive: zipfile.ZipFile, name: str) -> Element | None:
    """The root of an XML part; None where there is none. Entities and DTDs are refused."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        return None
    if info.flag_bits & 1:
        raise Refused("password")
    with archive.open(info) as stream:
        xml = stream.read(_MOST_XML + 1)  # whatever size the archive declares
    if len(xml) > _MOST_XML:
        raise Refused("bomb")
    builder, parser = TreeBuilder(), expat.ParserCreate(namespace_separator="}")
    depth = 0

    def refuse(*_: object) -> None:
        raise Refused("entities")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST_ELEMENT:
            raise Refused("deep")
        local = {key.rpartition("}")[2]: value for key, value in attributes.items()}
        builder.start(tag.rpartition("}")[2], local)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag.rpartition("}")[2])

    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(xml, True)
    except expat.ExpatError:
        raise Refused("damaged") from None
    return builder.close()


class _Writer:
    """Lines of text; a table inside a cell, or a frame inside a paragraph, stays on its line."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.lines: list[str] = []
        self.notes: list[str] = []

    def paragraphs(self, parent: Element) -> list[str]:
        """The lines below an element, without writing them."""
        outer, self.lines = self.lines, []
        self.blocks(parent)
        inner, self.lines = self.lines, outer
        return inner

    def blocks(self, parent: Element) -> None:
        """Writes the paragraphs and tables below an element."""
        raise NotImplementedError

    def inline(self, parent: Element, frames: list[str]) -> Iterator[str]:
        """The text of a paragraph in parts; lines of frames inside go to `frames`."""
        raise NotImplementedError

    def paragraph(self, parent: Element, listed: bool, text: str = "") -> None:
        """Writes a paragraph, and behind it what stands in its frames."""
        frames: list[str] = []
        for part in self.inline(parent, frames):
            text += raised(text, part[1:]) if part[:1] == _RAISED else part
        bullet = "- " if listed and text else ""
        self.lines += [*(bullet + text).split("\n"), *frames]

    def rows(self, table: Element, row_tag: str, cell_tag: str) -> None:
        """Writes the rows of a table."""
        for row in _within(table, row_tag):
            cells = _within(row, cell_tag)
            texts = [" ".join(filter(None, self.paragraphs(cell))) for cell in cells]
            if any(texts):
                self.lines.append(" | ".join(texts))


class _Docx(_Writer):
    def __init__(self, found: Found) -> None:
        super().__init__(found)
        self.numbers: dict[tuple[str, str], int] = {}  # of notes, by kind and id

    def blocks(self, parent: Element) -> None:
        for child in parent:
            if child.tag == "p":
                listed = child.find("./pPr/numPr/numId")
                self.paragraph(child, listed is not None and listed.get("val") != "0")
            elif child.tag == "tbl":
                self.rows(child, "tr", "tc")
            elif child.tag in ("del", "moveFrom"):
                self.found.note("deleted")
            elif child.tag != "Fallback":
                self.blocks(child)

    def inline(self, parent: Element, frames: list[str]) -> Iterator[str]:
        for child in parent:
            match child.tag:
                case "t":
                    yield child.text or ""
                case "tab" | "ptab" if parent.tag == "r":
                    yield "\t"
                case "br" | "cr":
                    yield "\n"
                case "noBreakHyphen":
                    yield "-"
                case "sym":  # a character of a symbol font, such as an arrow or a checked box
                    yield _symbol(child.get("char", ""))
                case "del" | "moveFrom" | "delText":
                    self.found.note("deleted")
                case "footnoteReference" | "endnoteReference":
                    self.numbers[child.tag[:-9], child.get("id", "")] = len(self.numbers) + 1
                    yield f"[{len(self.numbers)}]"
                case "commentReference":
                    self.found.note("comments")
                case "object" | "altChunk":
                    self.found.note("links")
                case "txbxContent":
                    frames += self.paragraphs(child)
                case "Fallback" | "instrText" | "pPr":
                    pass
                case "r" if _is_hidden(child):
                    self.found.note("hidden")
                case "r" if _is_raised(child):
                    yield _RAISED + "".join(self.inline(child, frames))
                case _:
                    yield from self.inline(child, frames)


def _is_hidden(run: Element) -> bool:
    mark = run.find("./rPr/vanish")
    return mark is not None and mark.get("val") not in ("0", "false", "off")


def _is_raised(run: Element) -> bool:
    mark, position = run.find("./rPr/vertAlign"), run.find("./rPr/position")
    if mark is not None:
        return mark.get("val") == "superscript"
    up = "" if position is None else position.get("val", "")
    return up.isdigit() and up != "0"


def _symbol(code: str) -> str:
    try:
        number = int(code, 16)
    except ValueError:
        return ""
    # Wingdings: boxes that are checked or not are the ones that forms of hospitals use.
    return {0xF0FE: "[x]", 0xF0FD: "[x]", 0xF0A8: "[ ]", 0xF06F: "[ ]"}.get(number, chr(number))


def _within(parent: Element, tag: str) -> Iterator[Element]:
    """The descendants of a tag, but not those inside one another."""
    for child in parent:
        if child.tag == tag:
            yield child
        elif child.tag not in ("del", "tbl", "table", "p"):
            yield from _within(child, tag)


def read_docx(data: bytes, codec: str | None, found: Found) -> None:
    """Finds the text of a Word document: headers, body, notes, footers."""
    archive = _archive(data)
    names = sorted(archive.namelist())
    if any(name.endswith("vbaProject.bin") for name in names):
        found.note("macros")
    main = [name for name in names if name.startswith("word/document") and name.endswith(".xml")]
    body = _part(archive, main[0]) if main else None
    if body is None:
        raise Refused("damaged")
    writer = _Docx(found)
    _edges(writer, archive, "word/header")
    writer.blocks(body)
    for kind in ("footnote", "endnote"):
        notes = _part(archive, f"word/{kind}s.xml")
        for note in notes if notes is not None else ():
            number = writer.numbers.get((kind, note.get("id", "")))
            if number is not None:
                text = " ".join(filter(None, writer.paragraphs(note)))
                writer.lines.append(f"[{number}] {text.strip()}")
    _edges(writer, archive, "word/footer")
    found.pages.append("\n".join(writer.lines))


def _edges(writer: _Docx, archive: zipfile.ZipFile, start: str) -> None:
    """Writes the headers or footers, one of each kind of page, mostly the same one."""
    for name in sorted(archive.namelist()):
        if name.startswith(start) and name.endswith(".xml"):
            _once(writer, _part(archive, name))


def _once(writer: _Writer, part: Element | None) -> None:
    lines = writer.paragraphs(part) if part is not None else []
    if any(lines) and not set(filter(None, lines)) <= set(writer.lines):
        writer.lines += lines


class _Odt(_Writer):
    raised: frozenset[str] = frozenset()  # names of styles

    def blocks(self, parent: Element) -> None:
        for child in parent:
            match child.tag:
                case "p" | "h":
                    self.paragraph(child, parent.tag == "list-item", _spaced(child.text))
                case "table":
                    self.rows(child, "table-row", "table-cell")
                case "tracked-changes":
                    self.found.note("deleted", len(child.findall(".//deletion")) or 1)
                case "annotation" | "sequence-decls" | "forms" | "variable-decls":
                    pass
                case _:
                    self.blocks(child)

    def inline(self, parent: Element, frames: list[str]) -> Iterator[str]:
        for child in parent:
            match child.tag:
                case "s":
                    yield " " * min(int(child.get("c", "1")), 1000)
                case "tab":
                    yield "\t"
                case "line-break":
                    yield "\n"
                case "note":
                    mark = f"[{len(self.notes) + 1}]"
                    yield mark
                    body = child.find("note-body")
                    texts = self.paragraphs(body) if body is not None else []
                    self.notes.append(f"{mark} {' '.join(filter(None, texts)).strip()}")
                case "annotation":
                    self.found.note("comments")
                case "text-box":
                    frames += self.paragraphs(child)
                case "object" | "object-ole":
                    self.found.note("links")
                case "hidden-text" | "hidden-paragraph":
                    self.found.note("hidden")
                case "annotation-end" | "ruby-text":
                    pass
                case "span" if child.get("style-name") in self.raised:
                    parts = self.inline(child, frames)
                    yield _RAISED + _spaced(child.text) + "".join(parts).replace(_RAISED, "")
                case _:
                    yield _spaced(child.text)
                    yield from self.inline(child, frames)
            yield _spaced(child.tail)


def _spaced(text: str | None) -> str:
    """Text of an element; line ends are only layout of the file, so they become spaces."""
    return re.sub(r"[ \t\r\n]+", " ", text or "")


def read_odt(data: bytes, codec: str | None, found: Found) -> None:
    """Finds the text of an OpenDocument text: headers, body, notes, footers."""
    archive = _archive(data)
    with archive.open("META-INF/manifest.xml") as stream:
        if b"encryption-data" in stream.read(_MOST_XML):
            raise Refused("password")
    if any(name.startswith(("Basic/", "Scripts/")) for name in archive.namelist()):
        found.note("macros")
    root, styles = _part(archive, "content.xml"), _part(archive, "styles.xml")
    body = root.find("./body/text") if root is not None else None
    if body is None:
        raise Refused("damaged")
    writer = _Odt(found)
    writer.raised = frozenset(
        style.get("name", "")
        for part in (root, styles)
        for style in (part.iter("style") if part is not None else ())
        for text in style.findall("./text-properties")
        if re.match(r"super|[1-9]", text.get("text-position", ""))
    )
    for tag in ("header", "header-first", "header-left"):
        for header in styles.iter(tag) if styles is not None else ():
            _once(writer, header)
    writer.blocks(body)
    writer.lines += writer.notes
    for tag in ("footer", "footer-first", "footer-left"):
        for footer in styles.iter(tag) if styles is not None else ():
            _once(writer, footer)
    found.pages.append("\n".join(writer.lines))


# --- RTF ------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    rb"\\([a-zA-Z]{1,32})(-?\d{1,10})? ?|\\'([0-9a-fA-F]{2})|\\([^a-zA-Z])|([{}])|([\r\n]+)"
    rb"|([^\\{}\r\n]+)",
    re.DOTALL,
)
_DEEPEST_GROUP = 2000
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
                if len(self._stack) > _DEEPEST_GROUP:
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
        """Sends the text of the group to another sink, on a line of its own."""
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


def read_rtf(data: bytes, codec: str | None, found: Found) -> None:
    """Finds the text of an RTF document: headers, body, footnotes, footers."""
    _Reader(data, found).read()
