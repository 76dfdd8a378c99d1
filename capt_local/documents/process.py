"""The process that parses one document: it confines itself, reads, answers, and ends."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable

from capt_local.hardening import be_first_to_go, confine, data_bytes, own_streams

MOST_CHARACTERS = 8 << 20
_MEMORY = 1 << 30  # bytes beyond what the program itself takes
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
    """The document is not read; the argument is a key of `document.REFUSALS`."""


class Found:
    """Text as it is found.

    Attributes:
        pages: texts of the pages, or one of the whole.
        paged: whether these are pages.
        notices: counts by the key of `document._NOTICES`.
    """

    def __init__(self) -> None:
        """Nothing is found yet."""
        self.pages: list[str] = []
        self.paged = False
        self.notices: dict[str, int] = {}

    def note(self, name: str, count: int = 1) -> None:
        """Counts what the user is told of."""
        self.notices[name] = self.notices.get(name, 0) + count


def serve() -> None:
    """Reads a request from standard input, and answers on standard output."""
    be_first_to_go()
    # Whatever is to be imported is there before files can be opened for nothing but reading.
    from capt_local.documents import html, office, pdf, rtf

    readers: dict[str, Callable[[bytes, str | None, Found], None]] = {
        "pdf": pdf.read,
        "docx": office.read_docx,
        "odt": office.read_odt,
        "rtf": rtf.read,
        "html": html.read,
    }
    incoming, outgoing = own_streams()
    if sys.platform != "win32":
        import resource

        limit = data_bytes() + _MEMORY
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
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
    return json.dumps({"refused": reason}).encode()


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
    return json.dumps(
        {
            "text": "\n\n".join(pages),
            "pages": spans if found.paged else [],
            "notices": list(found.notices.items()),
        }
    ).encode()


def tidy(text: str) -> str:
    """Text with plain letters and spaces, at most one empty line at once, none at the ends."""
    text = text.translate(_CLEANED).encode("utf-8", "replace").decode()
    lines: list[str] = []
    for line in text.split("\n"):
        line = _BULLET.sub("- ", re.sub(r"(?<=\S) +", " ", line)).rstrip()
        if line or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines).strip("\n")


def raised(before: str, text: str) -> str:
    """Superscript text: digits are marked, so that an exponent does not become part of a number.

    Args:
        before: text in front, of which the last character counts.
        text: that is raised.
    """
    if not text.strip().lstrip("+-\u2212").isdigit():
        return text
    return f"^{text}" if before[-1:].isalnum() else f"[{text}]"
