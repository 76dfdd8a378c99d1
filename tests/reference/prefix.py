"""The probabilities of what may follow a text, over all sequences of pieces."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

from capt_local.alignment.projection import FloatArray
from capt_local.tokenization.vocabulary import PrefixIndex
from tests.reference.growth import Read
from tests.reference.rows import Branch, pieces_behind


class Continuations:
    """Sums over coverings for some continuations of a text.

    Args:
        index: the proxy's text tokens in byte order.
        candidates: what may follow, none of them empty.
        least: sequences of less weight are not followed.
        width: the most that are read at once.
    """

    def __init__(
        self, index: PrefixIndex, candidates: Sequence[bytes], *, least: float, width: int
    ) -> None:
        """Sorts the candidates, so that those that begin alike stand side by side."""
        if not all(candidates):
            raise ValueError("a candidate is empty")
        self._index, self._least, self._width = index, least, width
        self._order = sorted(range(len(candidates)), key=candidates.__getitem__)
        self._sorted = [candidates[place] for place in self._order]
        self._sums = np.zeros(len(candidates))

    def masses(self, roots: Sequence[tuple[Branch, bytes]], read: Read) -> FloatArray:
        """The weight of each candidate.

        Args:
            roots: sequences whose rows are read, each with the text that it does not cover yet.
            read: reads the rows of sequences.

        Returns:
            Shape (candidates,), in their order.
        """
        children = [child for one, rest in roots for child in self._follow(one, rest, b"")]
        while children:
            children.sort(key=lambda pair: -pair[0].weight)
            wave = children[: self._width]
            read([one for one, _ in wave])
            children = [child for one, ahead in wave for child in self._follow(one, b"", ahead)]
        result = np.empty(len(self._order))
        result[self._order] = self._sums
        return result

    def _follow(self, one: Branch, rest: bytes, ahead: bytes) -> list[tuple[Branch, bytes]]:
        """Adds the pieces after a sequence that lacks `rest` or is `ahead` of the text.

        Returns:
            Sequences that end inside some candidate, with how far they are ahead.
        """
        low, high = self._beginning_with(ahead)
        if low == high:
            return []
        wanted = [rest + candidate[len(ahead) :] for candidate in self._sorted[low:high]]
        places = np.array([self._index.interval(piece) for piece in wanted], dtype=np.int32)
        self._sums[low:high] += one.weight * one.read.masses(places[:, 0], places[:, 1])
        return self._children(one, rest, ahead)

    def _children(self, one: Branch, rest: bytes, ahead: bytes) -> list[tuple[Branch, bytes]]:
        low, high = pieces_behind(self._index, rest)
        heavy = np.flatnonzero(one.read.pieces[low:high] * one.weight > self._least) + low
        children = []
        for place in heavy.tolist():
            reached = ahead + self._index.keys[place][len(rest) :]
            first, last = self._beginning_with(reached)
            if first < last:
                weight = one.weight * float(one.read.pieces[place])
                tokens = (*one.tokens, int(self._index.ids[place]))
                children.append((Branch(tokens, one.end, weight), reached))
        return children

    def _beginning_with(self, text: bytes) -> tuple[int, int]:
        """The candidates that begin with a text and go on."""
        low = bisect_right(self._sorted, text)
        high = bisect_left(
            self._sorted, True, lo=low, key=lambda candidate: not candidate.startswith(text)
        )
        return low, high
