"""The training text: reading it, and leaving out what must not be trained on.

Sources are JSON Lines of {id, source, text}, plain or xz-compressed. Of training documents, lines
are left out that share a run of 13 words (case and punctuation apart) with an evaluation file or a
held-out document; dialogues and word problems, which make no sense with a hole, go whole. A run
that stands in more than ten training documents is a stock phrase ("prepped and draped in the usual
sterile fashion") and no copy; both numbers are those of Brown et al. 2020, appendix C. Documents go
of which more than half of the runs stood in an earlier one.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.common import records

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
    for record in records(find(data, source)):
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


# Overlap.

RUN = 13
STOCK = 10
_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Runs = NDArray[np.uint64]


@cache
def _number(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())


def runs_of(text: str) -> tuple[Runs, NDArray[np.int32]]:
    """Fingerprints of all runs of a text, and the line in which each word stands.

    Run i begins with word i and ends with word i + 12; a text of n words has n - 12 of them.
    Different runs share a fingerprint of 64 bits with a chance of next to nothing.
    """
    numbers: list[int] = []
    lines: list[int] = []
    for at, line in enumerate(text.lower().split("\n")):
        words = _WORD.findall(line)
        numbers += map(_number, words)
        lines += [at] * len(words)
    drawn = np.array(numbers, np.uint64)
    runs = np.zeros(max(0, len(drawn) - RUN + 1), np.uint64)
    for place in range(RUN):
        runs = runs * _FACTOR + drawn[place : place + len(runs)]
    return runs, np.array(lines, np.int32)


def shared(runs: Runs, with_sorted: Runs) -> NDArray[np.bool_]:
    """Which runs stand in a sorted array of runs."""
    if not len(with_sorted):
        return np.zeros(len(runs), np.bool_)
    places = np.minimum(np.searchsorted(with_sorted, runs), len(with_sorted) - 1)
    found: NDArray[np.bool_] = with_sorted[places] == runs
    return found


def not_stock(hits: Sequence[Runs]) -> Runs:
    """Of the runs that documents share with forbidden text, those that are no stock phrases."""
    each = [np.unique(runs) for runs in hits if len(runs)]
    if not each:
        return np.zeros(0, np.uint64)
    runs, counts = np.unique(np.concatenate(each), return_counts=True)
    return runs[counts <= STOCK]


def without_lines(text: str, lines: NDArray[np.int32], at: NDArray[np.bool_]) -> str:
    """The text without the lines in which a marked run has words."""
    bad: set[int] = set()
    for place in np.flatnonzero(at):
        bad.update(range(int(lines[place]), int(lines[place + RUN - 1]) + 1))
    kept = [line for number, line in enumerate(text.split("\n")) if number not in bad]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def repeated_shares(documents: Sequence[Runs]) -> NDArray[np.float64]:
    """For each document the share of its runs that an earlier one (or it itself) had before."""
    if not documents:
        return np.zeros(0)
    sizes = np.array([len(runs) for runs in documents])
    _, first = np.unique(np.concatenate([np.zeros(0, np.uint64), *documents]), return_index=True)
    new = np.zeros(int(sizes.sum()), np.float64)
    new[first] = 1.0
    ends = np.cumsum(sizes)
    totals = np.concatenate([[0.0], np.cumsum(new)])
    fresh = totals[ends] - totals[ends - sizes]
    shares: NDArray[np.float64] = 1.0 - fresh / np.maximum(sizes, 1)
    shares[sizes == 0] = 0.0
    return shares


_WHOLE = ("mts-dialog-train", "gsm8k-train")
_REPEATED = 0.5


def evaluation_texts(folder: Path) -> Iterator[str]:
    """Everything that evaluation files say: inputs, references and prose."""
    for path in sorted(folder.glob("*.jsonl")):
        for record in records(path):
            for key in ("input", "reference", "text"):
                if isinstance(text := record.get(key), str):
                    yield clean(text)


def sift(documents: Sequence[Document], forbidden: Iterable[str]) -> list[Document]:
    """The documents without what must not be trained on, held-out ones as they are.

    Held-out documents that share runs with evaluation files stay: nothing is learnt from them.

    Args:
        documents: of all sources.
        forbidden: the texts of the evaluation files.
    """
    held = [d for d in documents if d.held_out]
    train = [d for d in documents if not d.held_out]
    runs = [runs_of(document.text) for document in train]
    texts = [*forbidden, *(d.text for d in held)]
    outlawed = np.unique(np.concatenate([np.zeros(0, np.uint64), *(runs_of(t)[0] for t in texts)]))
    marks = [shared(each, outlawed) for each, _ in runs]
    copies = not_stock([r[0][at] for r, at in zip(runs, marks, strict=True)])
    left: list[Document] = []
    for document, (found, lines), at in zip(train, runs, marks, strict=True):
        at &= shared(found, copies)
        if at.any():
            whole = document.source in _WHOLE
            text = "" if whole else without_lines(document.text, lines, at)
            document = replace(document, text=text)
        left.append(document)
    seen, shares = {""}, repeated_shares([runs_of(d.text)[0] for d in left])
    for document, share in zip(left, shares, strict=True):
        if share <= _REPEATED and document.text not in seen:
            held.append(document)
        seen.add(document.text)
    return held
