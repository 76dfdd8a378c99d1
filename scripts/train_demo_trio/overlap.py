"""Runs of words that two texts share, as the measure of what was seen before.

A run is 13 words in a row, without regard to case and punctuation. A run that stands in more than
ten training documents is a stock phrase of its kind of text ("prepped and draped in the usual
sterile fashion"), not a copy. Both numbers are those of Brown et al. 2020, appendix C.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

RUN = 13
STOCK = 10
_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Runs = NDArray[np.uint64]


@dataclass
class Words:
    """A number for every word, drawn once, from which runs get their fingerprints."""

    numbers: dict[str, int] = field(default_factory=dict)
    _drawn: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))

    def runs(self, text: str) -> tuple[Runs, NDArray[np.int32]]:
        """Fingerprints of all runs of a text, and the line in which each word stands.

        Run i begins with word i and ends with word i + 12; a text of n words has n - 12 of them.
        Different runs share a fingerprint of 64 bits with a chance of next to nothing.
        """
        found: list[int] = []
        lines: list[int] = []
        known = self.numbers
        for number, line in enumerate(text.lower().split("\n")):
            words = _WORD.findall(line)
            found += [known.setdefault(word, len(known)) for word in words]
            lines += [number] * len(words)
        count = len(found) - RUN + 1
        if count < 1:
            return np.zeros(0, np.uint64), np.array(lines, np.int32)
        drawn = self._table()[np.array(found)]
        runs = np.zeros(count, np.uint64)
        for place in range(RUN):
            runs = runs * _FACTOR + drawn[place : place + count]
        return runs, np.array(lines, np.int32)

    def _table(self) -> NDArray[np.uint64]:
        missing = len(self.numbers) - len(self._drawn)
        if missing > 0:
            more = np.random.default_rng(len(self._drawn)).integers(
                0, 2**64 - 1, max(missing, 65536), dtype=np.uint64
            )
            self._drawn = np.concatenate([self._drawn, more])
        return self._drawn


def shared(runs: Runs, with_sorted: Runs) -> NDArray[np.bool_]:
    """Which runs stand in a sorted array of runs."""
    if not len(with_sorted):
        return np.zeros(len(runs), np.bool_)
    places = np.minimum(np.searchsorted(with_sorted, runs), len(with_sorted) - 1)
    found: NDArray[np.bool_] = with_sorted[places] == runs
    return found


def union(parts: Iterable[Runs]) -> Runs:
    """All runs of several texts, sorted, each once."""
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]))


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
