"""DOCX and ODT to text: paragraphs as lines, rows of tables as lines, headers, notes at the end."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from io import BytesIO
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from capt_local.documents.document import Found, Refused, raised

_MOST_XML = 64 << 20  # bytes of one part
_MOST_PARTS = 10_000
_DEEPEST = 400
_RAISED = "\0"  # in front of superscript text, until what stands before it is known


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
        if depth > _DEEPEST:
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

    def rows(self, rows: Iterator[list[Element]]) -> None:
        """Writes the rows of a table."""
        for cells in rows:
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
                self.rows([c for c in _within(row, "tc")] for row in _within(child, "tr"))
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
    """Elements of a tag below, through what wraps them but not through one another."""
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
    # A header of each kind of page, mostly the same one.
    for name in names:
        if name.startswith("word/header") and name.endswith(".xml"):
            _once(writer, _part(archive, name))
    writer.blocks(body)
    for kind in ("footnote", "endnote"):
        notes = _part(archive, f"word/{kind}s.xml")
        for note in notes if notes is not None else ():
            number = writer.numbers.get((kind, note.get("id", "")))
            if number is not None:
                text = " ".join(filter(None, writer.paragraphs(note)))
                writer.lines.append(f"[{number}] {text.strip()}")
    for name in names:
        if name.startswith("word/footer") and name.endswith(".xml"):
            _once(writer, _part(archive, name))
    found.pages.append("\n".join(writer.lines))


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
                    self.rows(_cells(row) for row in _within(child, "table-row"))
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
    """Text of an element, in which line ends are how the file is laid out."""
    return re.sub(r"[ \t\r\n]+", " ", text or "")


def _cells(row: Element) -> list[Element]:
    return list(_within(row, "table-cell"))


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
