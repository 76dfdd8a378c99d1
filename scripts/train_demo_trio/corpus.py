"""Reading the training text: JSON Lines of {id, source, text}, plain or xz-compressed."""

from __future__ import annotations

import json
import lzma
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GENERAL = ("openstax-general", "english-novels-100", "gsm8k-train")
TEXTBOOKS = (
    "openstax-anatomy-physiology",
    "openstax-microbiology",
    "openstax-nursing-bundle",
)
CLINICAL = (
    "medquad",
    "mtsamples-noleak",
    "e3c-en-ccby",
    "mts-dialog-train",
    "aci-bench-train",
    *TEXTBOOKS,
)
SOURCES = (*GENERAL, *CLINICAL)

PIECE = 4000
"""Characters of a piece of text at most: about what the program's context holds."""
CHAPTER = 40_000
"""Characters after which a novel is cut into documents of its own."""

_BLANKS = str.maketrans(
    {"\xa0": " ", "\u2009": " ", "\u202f": " ", "\u200b": None, "\ufeff": None, "\r": None}
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a source; `held_out` documents are never trained on."""

    source: str
    id: str
    text: str

    @property
    def held_out(self) -> bool:
        """One document in a hundred, chosen by its identifier so that a re-run agrees."""
        return zlib.crc32(f"{self.source}/{self.id}".encode()) % 100 == 0


def clean(text: str) -> str:
    """Plain blanks, no trailing blanks, at most one empty line in a row."""
    text = re.sub(r"[ \t]+\n", "\n", text.translate(_BLANKS))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def lines_of(path: Path) -> Iterator[dict[str, object]]:
    """The records of a JSON Lines file."""
    opened: Any = lzma.open if path.suffix == ".xz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def find(data: Path, source: str) -> Path:
    """The file of a source: DATA/{clinical,general}/SOURCE.jsonl[.xz]."""
    for folder in ("clinical", "general"):
        for name in (f"{source}.jsonl.xz", f"{source}.jsonl"):
            if (data / folder / name).is_file():
                return data / folder / name
    raise FileNotFoundError(f"no {source}.jsonl or {source}.jsonl.xz under {data}")


def pieces(text: str, size: int = PIECE) -> list[str]:
    """A text in pieces of at most `size` characters.

    Cut between paragraphs or lines, a longer line between sentences; only a sentence that is
    longer than that is cut at a blank, or anywhere where it has none.
    """
    if len(text) <= size:
        return [text]
    out: list[str] = []
    part = ""
    for line in _short_lines(text, size):
        if part and len(part) + len(line) > size:
            out.append(part.strip("\n"))
            part = ""
        part += line
    return [piece for piece in [*out, part.strip("\n")] if piece]


def _short_lines(text: str, size: int) -> Iterator[str]:
    for line in text.splitlines(keepends=True):
        while len(line) > size:
            ends = [m.end() for m in _SENTENCE_END.finditer(line, 0, size)]
            end = ends[-1] if ends else line.rfind(" ", 0, size) + 1 or size
            yield line[:end]
            line = line[end:]
        yield line


def load(data: Path, source: str, limit: int = 0) -> list[Document]:
    """The cleaned documents of a source, novels in chapters.

    With a limit (in characters) documents are taken evenly from the whole source, so that a small
    part has something of every novel and every textbook.
    """
    documents: list[Document] = []
    for record in lines_of(find(data, source)):
        name, text = str(record["id"]), clean(str(record["text"]))
        parts = pieces(text, CHAPTER) if len(text) > 5 * CHAPTER else [text]
        documents += [
            Document(source, f"{name}.{i}" if i else name, part) for i, part in enumerate(parts)
        ]
    return thinned(documents, limit)


def thinned(documents: list[Document], limit: int) -> list[Document]:
    """Documents of about `limit` characters together, evenly over the list; all with limit 0."""
    whole = sum(len(document.text) for document in documents)
    if not limit or whole <= limit:
        return documents
    kept: list[Document] = []
    seen = taken = 0
    for document in documents:
        seen += len(document.text)
        if taken < seen * limit / whole:
            kept.append(document)
            taken += len(document.text)
    return kept
