"""The process that parses one document: it confines itself, reads, answers, and ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from capt_local.documents.document import Found, Refused, tidy
from capt_local.hardening import be_first_to_go, confine, limit_memory, own_streams

MOST_CHARACTERS = 8 << 20
_MEMORY = 1 << 30  # bytes beyond what the program itself takes


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
