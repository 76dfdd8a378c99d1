"""Detects the kind of a document and extracts its text.

The kind follows from the content; a name that says another kind is refused, so that nothing is
parsed as what it is not. Errors hold nothing of the document, not even its name. The parsers share
the second part: collecting text, and normalising its characters and spaces.
"""

from __future__ import annotations

import bisect
import codecs
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from capt_local.errors import UsageError
from capt_local.hardening import run_isolated
from capt_local.strict_json import read_bytes, size_text

LARGEST_FILE = 64 << 20  # bytes of a document
_LARGEST_REPLY = 96 << 20  # bytes of its text as JSON
_SECONDS = 60.0  # for one document
_PROGRAM = "from capt_local.documents.process import serve; serve()"

SUFFIXES: Mapping[str, str] = {
    ".txt": "text", ".text": "text", ".md": "text", ".pdf": "pdf", ".docx": "docx",
    ".docm": "docx", ".dotx": "docx", ".odt": "odt", ".ott": "odt", ".rtf": "rtf",
    ".html": "html", ".htm": "html", ".xhtml": "html", ".doc": "doc",
}  # fmt: skip
_NAMES = {
    "pdf": "a PDF", "docx": "a DOCX file", "odt": "an ODT file", "rtf": "RTF", "html": "HTML",
    "text": "plain text", "doc": "a DOC file", "zip": "another kind of ZIP archive",
    "image": "an image",
}  # fmt: skip
_MAGIC = (
    (b"{\\rtf", "rtf"), (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "doc"), (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"), (b"\x89PNG", "image"), (b"\xff\xd8\xff", "image"),
    (b"II*\0", "image"), (b"MM\0*", "image"), (b"GIF8", "image"),
)  # fmt: skip

_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s{0,1000}<(?:!doctype html|html)\b", re.IGNORECASE)

_HALF = re.compile("[\ud800-\udfff]")

REFUSALS: Mapping[str, str] = {
    "password": "needs a password; save a copy without one",
    "scan": "has no text layer (a scan?); text recognition is not part of capt-local",
    "empty": "holds no text",
    "damaged": "is damaged or incomplete",
    "entities": "declares XML entities, which documents of this kind do not need",
    "bomb": "unpacks to more than a document may",
    "pages": "has more than 2,000 pages",
    "deep": "is nested too deeply",
    "memory": "takes more memory than a document may",
    "old-word": "is of the old Word format (.doc); save it as DOCX or PDF",
    "image": "is an image; text recognition is not part of capt-local",
    "zip": "is a ZIP archive of an unknown kind",
    "long": "holds more text than a document may",
    "encoding": "declares no encoding, and is not UTF-8; name it with --encoding",
}
_NOTICES: Mapping[str, str] = {
    "macros": "its macros were ignored",
    "blank": "pages without any text, perhaps images: {}",
    "deleted": "deleted text of tracked changes was left out",
    "hidden": "hidden text was left out",
    "comments": "comments were left out",
    "unmapped": "characters that have no Unicode value in the file: {}",
    "links": "text of linked or embedded objects was left out",
}


class DocumentError(UsageError):
    """A document cannot be read; `problem` says why, as a predicate after a name for it."""

    def __init__(self, what: str, problem: str) -> None:
        self.problem = problem
        super().__init__(f"{what} {problem}.")


@dataclass(frozen=True, slots=True)
class Document:
    """The text of a document."""

    text: str  # of all pages
    pages: tuple[tuple[int, int], ...] = ()  # start and end of each in the text, if there are any
    kind: str = "text"  # or pdf, docx, odt, rtf, html
    notices: tuple[str, ...] = ()  # what was left out, a sentence each without a full stop

    def page(self, offset: int) -> int | None:
        """The page that holds a character, from 1; None where there are no pages."""
        if not self.pages:
            return None
        return max(1, bisect.bisect_right([start for start, _ in self.pages], offset))


def read_path(
    path: Path, what: str, encoding: str | None = None, *, pipes: bool = True
) -> Document:
    """The document in a file (or pipe); UsageError where it cannot be read; see `read`."""
    data = read_bytes(path, what, largest=LARGEST_FILE, pipes=pipes)
    return read(data, name=path.name, what=what, encoding=encoding)


def read(
    data: bytes, *, name: str = "", what: str = "The document", encoding: str | None = None
) -> Document:
    """The text of a document.

    Args:
        data: its bytes.
        name: of its file; only the ending matters, and may be missing.
        what: what errors call it.
        encoding: of plain text and HTML; None: that of a byte order mark, else UTF-8.

    Raises:
        DocumentError: it is damaged, encrypted, a scan, too large, not what its name says, or
            text of another encoding.
    """
    if len(data) > LARGEST_FILE:
        raise DocumentError(what, f"is larger than {size_text(LARGEST_FILE)}")
    kind = _kind(data, Path(name).suffix.lower(), what)
    if kind == "text":
        return Document(decode(data, what, encoding))
    codec = None
    if kind == "html" and (encoding or data.startswith((BOM_UTF8, BOM_UTF16_LE, BOM_UTF16_BE))):
        data, codec = decode(data, what, encoding).encode(), "utf-8"
    return _parsed(data, kind, codec, what)


def _kind(data: bytes, suffix: str, what: str) -> str:
    """The kind by content, which must be that of the name where the name says one."""
    named, found = SUFFIXES.get(suffix), "text"
    if b"%PDF-" in data[:1024]:
        found = "pdf"
    elif magic := next((kind for start, kind in _MAGIC if data.startswith(start)), None):
        found = magic
    elif _HTML.match(data):
        found = "text" if named == "text" else "html"
    if found == "zip" and b"word/document" in data:
        found = "docx"
    elif found == "zip" and b"application/vnd.oasis.opendocument.text" in data[:200]:
        found = "odt"
    if found == "doc" and "EncryptedPackage".encode("utf-16-le") in data:
        raise DocumentError(what, REFUSALS["password"])
    if named == "html" and found == "text":
        return "html"
    if named == "doc" and found in ("docx", "rtf"):  # programs save them under this name
        return found
    if named is not None and named != found:
        if found == "text":
            raise DocumentError(what, f"is not {_NAMES[named]}, though its name says so")
        raise DocumentError(what, f"is {_NAMES[found]} by its content, but its name ends otherwise")
    if found in ("doc", "image", "zip"):
        raise DocumentError(what, REFUSALS["old-word" if found == "doc" else found])
    return found


def decode(data: bytes, what: str, encoding: str | None = None) -> str:
    """Bytes as text, by a byte order mark, the encoding that is named, or UTF-8; never guessed.

    Raises:
        DocumentError: naming the offset of the first byte that is not of the encoding, or is NUL.
        UsageError: there is no such encoding.
    """
    mark, codec = b"", codec_name(encoding)
    for bom, its_codec in (
        (BOM_UTF8, "utf-8"), (BOM_UTF16_LE, "utf-16-le"), (BOM_UTF16_BE, "utf-16-be"),
    ):  # fmt: skip
        if data.startswith(bom):
            mark = bom
            if codec is not None and not its_codec.startswith(codec):
                raise DocumentError(what, f"begins with the mark of {its_codec}, not of {encoding}")
            codec = its_codec
    codec = codec or "utf-8"
    try:
        text = data[len(mark) :].decode(codec)
    except UnicodeDecodeError as error:
        place = error.start + len(mark)
        shown = "UTF-8" if codec == "utf-8" else codec
        help = "Convert it, or name its encoding: --encoding windows-1252, utf-16"
        raise DocumentError(
            what,
            f"is not valid {shown}: byte {place} (counted from 0) is 0x{data[place]:02x}. {help}",
        ) from None
    if _HALF.search(text):  # which some encodings can spell
        raise DocumentError(what, "holds half of a character (a lone surrogate)")
    if (place := text.find("\0")) >= 0:
        byte = len(mark) + len(text[:place].encode(codec))
        hint = "; is it UTF-16? Then give --encoding utf-16-le" if codec == "utf-8" else ""
        raise DocumentError(what, f"holds a NUL byte (0x00) at byte {byte} (counted from 0){hint}")
    return text


def codec_name(encoding: str | None) -> str | None:
    """Python's name of a text encoding. Raises UsageError if there is none such."""
    if encoding is None:
        return None
    try:
        codec = codecs.lookup(encoding)
        "a".encode(codec.name).decode(codec.name)  # not one that turns bytes into bytes
    except (LookupError, ValueError):
        raise UsageError(
            "--encoding takes the name of an encoding: utf-8, utf-16, windows-1252, iso-8859-15."
        ) from None
    return codec.name


class Reply(msgspec.Struct):
    """What the confined process answers."""

    refused: str = ""
    text: str = ""
    pages: list[tuple[int, int]] = []
    notices: list[tuple[str, int]] = []


def _parsed(data: bytes, kind: str, codec: str | None, what: str) -> Document:
    """The text that a confined process extracts; any failure there becomes a one-line error."""
    header = f"{kind} {codec or '-'} {len(data)}\n".encode()
    try:
        answer, _ = run_isolated(_PROGRAM, header + data, seconds=_SECONDS, largest=_LARGEST_REPLY)
    except TimeoutError:
        problem = f"kept its reader busy for more than {_SECONDS:.0f} s"
        raise DocumentError(what, problem) from None
    if answer == b"unconfined":
        raise UsageError(
            f"{what} needs a reader that gives up system calls (seccomp), and this system does not "
            "let it. Give plain text."
        )
    try:
        reply = msgspec.json.decode(answer, type=Reply)
    except (msgspec.DecodeError, ValueError):
        raise DocumentError(what, "cannot be read: it ended the process that reads it") from None
    if reply.refused:
        raise DocumentError(what, REFUSALS.get(reply.refused, REFUSALS["damaged"]))
    if any(not 0 <= start <= end <= len(reply.text) for start, end in reply.pages):
        raise DocumentError(what, REFUSALS["damaged"])
    notices = tuple(
        _NOTICES[name].format(count) for name, count in reply.notices if name in _NOTICES
    )
    return Document(reply.text, tuple(reply.pages), kind, notices)


# --- what the parsers find, in the confined process ----------------------------------------------

# Ligatures as letters, no-break spaces as spaces; what is invisible or no text at all is dropped.
_CLEANED = {
    0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB05: "st",
    0xFB06: "st", 0xA0: " ", 0x202F: " ", 0x2011: "-", 0xAD: None, 0x200B: None, 0xFEFF: None,
    0x2060: None, 0x0D: None, 0x0B: "\n", 0x0C: "\n", 0x85: "\n", 0x2028: "\n", 0x2029: "\n",
    **{code: None for code in (*range(9), *range(0x0E, 0x20), 0x7F, 0xFFFE, 0xFFFF)},
}  # fmt: skip
# Symbol fonts have their bullets at codes of their own.
_BULLET = re.compile(r"^\s*[\ue000-\uf8ff\u2022\u00b7\u25aa]\s+")


class Refused(Exception):
    """The document is not read; the argument is a key of `REFUSALS`."""


class Found:
    """Collects the text and the notices of a document."""

    def __init__(self) -> None:
        self.pages: list[str] = []  # their texts, or one of the whole
        self.paged = False
        self.notices: dict[str, int] = {}  # counts by the key of `_NOTICES`

    def note(self, name: str, count: int = 1) -> None:
        """Counts a notice."""
        self.notices[name] = self.notices.get(name, 0) + count


def tidy(text: str) -> str:
    """Text with normalised characters and spaces, single empty lines, and none at the ends."""
    text = text.translate(_CLEANED).encode("utf-8", "replace").decode()
    lines: list[str] = []
    for line in text.split("\n"):
        line = _BULLET.sub("- ", re.sub(r"(?<=\S) +", " ", line)).rstrip()
        if line or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines).strip("\n")


def raised(before: str, text: str) -> str:
    """Marks superscript numbers (`^9`, `[1]`), so that an exponent does not join the number."""
    if not text.strip().lstrip("+-\u2212").isdigit():
        return text
    return f"^{text}" if before[-1:].isalnum() else f"[{text}]"
