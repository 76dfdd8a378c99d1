"""Reading the training text: JSON Lines of {id, source, text}, plain or xz-compressed."""

from __future__ import annotations

import json
import lzma
import random
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

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

_BLANKS = str.maketrans({"\xa0": " ", "\u2009": " ", "\u202f": " ", "\u200b": None, "\r": None})


@dataclass(frozen=True)
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


def _open(path: Path) -> IO[str]:
    if path.suffix == ".xz":
        return cast(IO[str], lzma.open(path, "rt", encoding="utf-8"))
    return path.open(encoding="utf-8")


def find(data: Path, source: str) -> Path:
    """The file of a source: DATA/{clinical,general}/SOURCE.jsonl[.xz]."""
    for folder in ("clinical", "general"):
        for name in (f"{source}.jsonl.xz", f"{source}.jsonl"):
            if (data / folder / name).is_file():
                return data / folder / name
    raise FileNotFoundError(f"no {source}.jsonl or {source}.jsonl.xz under {data}")


def chunks(text: str, size: int) -> list[str]:
    """Cut a long text at paragraph ends into pieces of about `size` characters."""
    out: list[str] = []
    part: list[str] = []
    held = 0
    for paragraph in text.split("\n\n"):
        part.append(paragraph)
        held += len(paragraph)
        if held >= size:
            out.append("\n\n".join(part))
            part, held = [], 0
    return [*out, "\n\n".join(part)] if part else out


def load(data: Path, source: str, limit: int = 0, seed: int = 0) -> list[Document]:
    """The cleaned documents of a source, novels in chunks; `limit` characters when not 0.

    With a limit only the first part of the file (twelve times as much) is read and drawn from.
    """
    documents: list[Document] = []
    read = 0
    with _open(find(data, source)) as lines:
        for line in lines:
            record = json.loads(line)
            text = clean(record["text"])
            parts = chunks(text, 6000) if len(text) > 200_000 else [text]
            name = str(record["id"])
            documents += [Document(source, f"{name}.{i}", p) for i, p in enumerate(parts)]
            read += len(text)
            if limit and read > 12 * limit:
                break
    random.Random(seed).shuffle(documents)
    if not limit:
        return documents
    kept, held = [], 0
    for document in documents:
        if held > limit:
            break
        kept.append(document)
        held += len(document.text)
    return kept
