"""The probability of a text's bytes under a proxy, over all of its tokenizations.

A language model over tokens y gives a text sigma the probability

    Z(sigma) = sum of p(y) p(u | y) over all y that end inside sigma, and all pieces u that reach
               its end or go beyond it

(minimal coverings: Vieira et al. 2025, "From language models over tokens to language models over
characters"; Phan et al. 2025; Hayase et al. 2025). These events exclude each other, so the text
goes on with s with probability Z(sigma s) / Z(sigma). Here the sum runs over a beam: sequences of
little weight are left out, which makes Z a lower bound, and what was left out is counted.

Control tokens carry no bytes and are no event: the probabilities of all that can follow a text,
its end included, add up to 1 less the probability of control tokens.

Pure: what follows a sequence of tokens comes from a `Reader`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import inf, log, log1p

import numpy as np

from capt_local.alignment.projection import FloatArray
from capt_local.tokenization.vocabulary import IntArray, PrefixIndex
from tests.reference.events import EventTables, event_masses
from tests.reference.growth import Growth, Window
from tests.reference.prefix import Continuations
from tests.reference.rows import Branch, Reader, Row, pieces_behind

# Text is taken in parts of so many bytes: weights relative to the part before do not underflow.
_PART = 16
# A share of more than this counts as this, so that `lost` stays finite.
_MOST = 0.999


class Coverings:
    """The sequences of pieces that cover a growing text, with their weights.

    A tokenizer that puts a space before a text: `append` that space first (`TextTokenizer.lead`);
    it counts in `log_prefix`, and what follows is conditional on it.

    Args:
        index: the proxy's text tokens in byte order.
        end_ids: the proxy's tokens that end a generation: one event.
        read: rows after head + tail. Any number of tails in one call.
        width: the most sequences that are kept, and that are read at once.
        drop: sequences with less than this share of the text's probability are left out.
        horizon: bytes behind which all sequences must be the heaviest one, so that its tokens can
            move to the head (`stem`).

    The defaults were measured on clinical notes with a vocabulary of 6,000 pieces: a width of 24
    with a drop of 1e-5 changes a token's log-probability by 0.0015 nats on average.

    Attributes:
        index: as given.
        log_prefix: log Z of the text, a lower bound (nats).
        lost: nats that would be added to `log_prefix` if all that was left out went on as well as
            what was kept: an estimate of the error.
        positions: rows read so far.
    """

    def __init__(
        self,
        index: PrefixIndex,
        end_ids: IntArray,
        read: Reader,
        *,
        width: int = 8,
        drop: float = 1e-3,
        horizon: int = 64,
    ) -> None:
        """Starts with the empty text. Reads nothing yet."""
        if width < 1 or not 0.0 <= drop < 1.0 or horizon < 0:
            raise ValueError("width at least 1, drop in [0, 1), horizon not negative")
        self.index, self._end_ids, self._reader = index, end_ids, read
        self._width, self._drop, self._horizon = width, drop, horizon
        self._lengths = {
            int(token): len(key) for token, key in zip(index.ids, index.keys, strict=True)
        }
        self._longest = max(self._lengths.values(), default=0)
        self._size = 0
        self._tail = b""
        self._live = [Branch((), 0, 1.0)]
        self._kept = 1.0
        # Rows read for this text; what is asked about it twice is read once.
        self._read_before: dict[tuple[int, ...], Row] = {}
        self._log_dropped = -inf
        self.log_prefix = 0.0
        self.lost = 0.0
        self.positions = 0

    @property
    def bound(self) -> float:
        """Upper bound of log Z - log_prefix (nats): what was left out covered all that came since.

        It grows with the text; `lost` is the better guess for texts of more than a few words.
        """
        return float(np.logaddexp(0.0, self._log_dropped - self.log_prefix))

    @property
    def branches(self) -> Sequence[Branch]:
        """The sequences now; do not change them."""
        return self._live

    @property
    def stem(self) -> tuple[int, ...]:
        """Tokens that all sequences begin with, but for at least one token of each."""
        tails = [one.tokens[:-1] for one in self._live]
        # What the first and the last in order share, all between them share.
        first, last = min(tails), max(tails)
        pairs = enumerate(zip(first, last, strict=False))
        return first[: next((place for place, (a, b) in pairs if a != b), len(first))]

    def rebase(self) -> tuple[int, ...]:
        """Takes the `stem` off all tails; the caller's head must grow by what is returned."""
        stem = self.stem
        self._read_before.clear()
        for one in self._live:
            one.tokens = one.tokens[len(stem) :]
        return stem

    def append(self, text: bytes) -> float:
        """Takes more text.

        Returns:
            Its log-probability, given the text before (nats; what `prefix` would have said). Where
            sequences were left out the sum of these is above `log_prefix` and closer to log Z,
            but no bound: what is left out counts as if it went on as well as what was kept.

        Raises:
            ValueError: no sequence of pieces covers the text.
        """
        return sum(self._append(text[at : at + _PART]) for at in range(0, len(text), _PART))

    def prefix(self, candidates: Sequence[bytes]) -> FloatArray:
        """The probability that the text goes on with each candidate, shape (n,).

        Candidates that one piece can cover cost no row. Where several pieces in a row are needed,
        those with more than the share `drop` are read, at most `width` at once.

        Args:
            candidates: not empty ones; need not exclude each other.
        """
        self.settle()
        continuations = Continuations(
            self.index, candidates, least=self._drop * self._kept, width=self._width
        )
        roots = [(one, self._rest(one)) for one in self._live]
        found: FloatArray = continuations.masses(roots, self.read) / self._kept
        return found

    def end(self) -> float:
        """The probability that the text ends here."""
        self.settle()
        ended = sum(one.weight * one.read.end for one in self._live if one.end == self._size)
        return ended / self._kept

    def overhangs(self) -> Iterator[tuple[bytes, float]]:
        """What single pieces add behind the text, with probabilities; the same bytes may repeat.

        With `end` these are all events: they add up to 1 less the control tokens.
        """
        self.settle()
        for one in self._live:
            rest = self._rest(one)
            low, high = pieces_behind(self.index, rest)
            masses = one.read.pieces[low:high] * (one.weight / self._kept)
            for key, mass in zip(self.index.keys[low:high], masses.tolist(), strict=True):
                yield key[len(rest) :], mass

    def events(self, tables: EventTables, *, mass: float) -> FloatArray:
        """The probability of each token event of the target.

        Args:
            tables: of the target, for this proxy's vocabulary.
            mass: where a longer target token may still come, a piece of more than this probability
                is read one step further; below, it credits the token that begins it.

        Returns:
            Shape (tables.count,); the end of the text is event END_EVENT.
        """
        self.settle()
        roots = [(one, self._rest(one)) for one in self._live]
        found: FloatArray = event_masses(tables, roots, self.read, mass * self._kept) / self._kept
        return found

    def settle(self) -> None:
        """Reads what the questions about the text need, in one batch."""
        self.read(self._live)

    def read(self, branches: Sequence[Branch]) -> None:
        """Reads the rows that are missing."""
        for one in branches:
            one.row = one.row or self._read_before.get(one.tokens)
        missing = [one for one in branches if one.row is None]
        if not missing:
            return
        rows = self._reader([one.tokens for one in missing])
        self.positions += len(missing)
        for one, row in zip(missing, rows, strict=True):
            one.row = self._read_before[one.tokens] = Row(row, self.index, self._end_ids)

    def _rest(self, one: Branch) -> bytes:
        """The text that a sequence does not cover yet."""
        return self._tail[len(self._tail) - (self._size - one.end) :]

    def _append(self, text: bytes) -> float:
        seen, before = self._size, self._kept
        self._size += len(text)
        self._tail = (self._tail + text)[-(self._longest + len(text)) :]
        grown = self._grow(seen, self._drop)
        if grown.total <= self._drop * self._kept:
            # So unlikely a text that the little that was left out may be most of it: again from
            # where the sequences of today began, and with more of them.
            grown = self._grow(min(one.end for one in self._live), self._drop * grown.total)
        if not grown.total > 0.0:
            raise ValueError("no sequence of pieces of this vocabulary covers the text")
        self._leave_out(grown.left_out)
        self.log_prefix += log(grown.total)
        for one, _ in grown.found:
            one.weight /= grown.total
        self._prune([(mass / grown.total, one) for one, mass in grown.found])
        self._read_before.clear()
        return log(grown.total / before)

    def _grow(self, seen: int, drop: float) -> Growth:
        start = min(one.end for one in self._live)
        window = Window(self._tail[len(self._tail) - (self._size - start) :], start, seen)
        grown = Growth(self.index, window, self.read, width=self._width, drop=drop)
        grown.run(self._live)
        return grown

    def _prune(self, found: list[tuple[float, Branch]]) -> None:
        """Keeps the heaviest sequences, and of these the ones that agree on old text."""
        found.sort(key=lambda pair: -pair[0])
        old = self._old_tokens(found[0][1])
        kept: list[tuple[float, Branch]] = []
        out: list[tuple[float, Branch]] = []
        for share, one in found:
            good = len(kept) < self._width and share >= self._drop and one.tokens[: len(old)] == old
            (kept if good else out).append((share, one))
        if not kept:
            kept.append(out.pop(0))
        self._leave_out((share, share) for share, _ in out)
        self._live = [one for _, one in kept]
        self._kept = sum(share for share, _ in kept)

    def _old_tokens(self, one: Branch) -> tuple[int, ...]:
        """The tokens of a sequence that end before the horizon."""
        place, count = one.end, len(one.tokens)
        while count and place > self._size - self._horizon:
            count -= 1
            place -= self._lengths[one.tokens[count]]
        return one.tokens[:count]

    def _leave_out(self, shares: Iterable[tuple[float, float]]) -> None:
        """Counts what is left out: its share where it ended, its weight in all."""
        for share, weight in shares:
            self.lost -= log1p(-min(share, _MOST))
            if weight > 0.0:
                mass = log(weight) + self.log_prefix
                self._log_dropped = float(np.logaddexp(self._log_dropped, mass))
