"""What must not be trained on: what evaluation files and held-out documents hold, and repeats.

- Of training documents, lines are left out that share a run of 13 words with an evaluation file or
  with a held-out document (stock phrases excepted, see `overlap`); dialogues and word problems,
  which make no sense with a hole, go whole.
- Documents go of which more than half of the runs stood in an earlier one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.train_demo_trio import overlap
from scripts.train_demo_trio.corpus import Document, clean, lines_of

_WHOLE = ("mts-dialog-train", "gsm8k-train")
_REPEATED = 0.5


@dataclass(frozen=True, slots=True)
class Counted:
    """What became of a source, in documents and characters."""

    source: str
    read: int
    whole_dropped: int
    lines_dropped: int
    repeated: int
    kept: int
    characters: int

    def line(self) -> str:
        """For the report."""
        return (
            f"{self.source:28} {self.read:7,} read, {self.whole_dropped:5,} dropped and "
            f"{self.lines_dropped:5,} cut for overlap, {self.repeated:5,} repeated, "
            f"{self.kept:7,} kept, {self.characters / 1e6:7.2f} M characters"
        )


def evaluation_texts(folder: Path) -> Iterator[str]:
    """Everything that evaluation files say: inputs, references and prose."""
    for path in sorted(folder.glob("*.jsonl")):
        for record in lines_of(path):
            for key in ("input", "reference", "text"):
                if isinstance(text := record.get(key), str):
                    yield clean(text)


class Sieve:
    """Takes out of documents what must not be trained on."""

    def __init__(self, forbidden: Sequence[str]) -> None:
        """`forbidden` are the texts of the evaluation files."""
        self.words = overlap.Words()
        self.forbidden = [self.words.runs(text)[0] for text in forbidden]

    def sift(self, documents: Sequence[Document]) -> tuple[list[Document], list[Counted]]:
        """The documents that are left (held-out ones as they are) and what became of each source.

        Held-out documents that share runs with evaluation files stay: nothing is learnt from them.
        """
        held = [d for d in documents if d.held_out]
        train = [d for d in documents if not d.held_out]
        runs = [self.words.runs(document.text) for document in train]
        outlawed = overlap.union([*self.forbidden, *(self.words.runs(d.text)[0] for d in held)])
        marks = [overlap.shared(each, outlawed) for each, _ in runs]
        copies = overlap.not_stock([r[0][at] for r, at in zip(runs, marks, strict=True)])
        left: list[Document] = []
        for document, (found, lines), at in zip(train, runs, marks, strict=True):
            at &= overlap.shared(found, copies)
            left.append(_without(document, lines, at) if at.any() else document)
        fresh = self._fresh(left)
        return [*held, *(d for d in fresh if d.text)], _count(documents, train, left, fresh)

    def _fresh(self, documents: Sequence[Document]) -> list[Document]:
        shares = overlap.repeated_shares([self.words.runs(d.text)[0] for d in documents])
        seen: set[str] = set()
        out: list[Document] = []
        for document, share in zip(documents, shares, strict=True):
            again = share > _REPEATED or document.text in seen
            seen.add(document.text)
            out.append(replace(document, text="") if again else document)
        return out


def _without(document: Document, lines: NDArray[np.int32], at: NDArray[np.bool_]) -> Document:
    if document.source in _WHOLE:
        return replace(document, text="")
    return replace(document, text=overlap.without_lines(document.text, lines, at))


def _count(
    read: Sequence[Document],
    train: Sequence[Document],
    left: Sequence[Document],
    fresh: Sequence[Document],
) -> list[Counted]:
    whole, cut, again, kept, size = (Counter[str]() for _ in range(5))
    for before, after, last in zip(train, left, fresh, strict=True):
        source = before.source
        whole[source] += not after.text
        cut[source] += bool(after.text) and after.text != before.text
        again[source] += bool(after.text) and not last.text
        kept[source] += bool(last.text)
        size[source] += len(last.text)
    return [
        Counted(name, number, whole[name], cut[name], again[name], kept[name], size[name])
        for name, number in Counter(document.source for document in read).items()
    ]
