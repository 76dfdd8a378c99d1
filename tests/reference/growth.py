"""How sequences of pieces grow over new text: in waves, each wave one batch of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from capt_local.tokenization.vocabulary import PrefixIndex
from tests.reference.rows import Branch, Span, spans

Read = Callable[[Sequence[Branch]], None]


@dataclass(frozen=True, slots=True)
class Window:
    """The end of a text, from where the first unfinished piece may begin.

    Attributes:
        text: its bytes.
        start: their place in the whole text.
        seen: how much of the whole text was covered before.
    """

    text: bytes
    start: int
    seen: int

    @property
    def size(self) -> int:
        """Bytes of the whole text."""
        return self.start + len(self.text)


class Growth:
    """All sequences that cover a text, from those that covered its first `seen` bytes.

    A sequence that ends inside the new text is read if its share of what the text has there, up to
    its own end, is at least `drop`, and if no `width` others of its wave have more.

    Attributes:
        total: Z of the text, relative to that of the text seen before.
        found: sequences that end with the text, and those of which a piece goes beyond it, each
            with its part of the total.
        left_out: share and weight of the sequences that were not followed.
    """

    def __init__(
        self, index: PrefixIndex, window: Window, read: Read, *, width: int, drop: float
    ) -> None:
        """Takes the parameters; `run` does the work."""
        self._index, self._window, self._read = index, window, read
        self._width, self._drop = width, drop
        self._spans: dict[int, list[Span]] = {}
        self._masses = [0.0] * (len(window.text) + 1)  # Z of the text up to each place
        self.found: list[tuple[Branch, float]] = []
        self.left_out: list[tuple[float, float]] = []

    @property
    def total(self) -> float:
        """See above."""
        return self._masses[-1]

    def run(self, live: Sequence[Branch]) -> None:
        """Follows the sequences to the end of the text."""
        known = {one.tokens for one in live}
        wave = list(live)
        self._read(wave)
        while wave:
            children = [child for one in wave for child in self._step(one)]
            wave = self._choose([child for child in children if child.tokens not in known])
            if wave:
                # Sequences that end with the text will be read for what follows it: one batch.
                self._read([*wave, *self._ended()])

    def _ended(self) -> list[Branch]:
        """The heaviest sequences so far that end with the text."""
        least = self._drop * self.total
        ended = [one for one, mass in self.found if one.end == self._window.size and mass >= least]
        return sorted(ended, key=lambda one: -one.weight)[: self._width]

    def _step(self, one: Branch) -> list[Branch]:
        """Adds the pieces that may follow a sequence; returns the sequences that fit the text."""
        window, children = self._window, []
        for size, low, middle, high in self._spans_at(one.end):
            place = one.end + size
            if place > window.seen:
                self._masses[place - window.start] += one.weight * one.read.mass(low, high)
                for token, chance in zip(
                    self._index.ids[low:middle].tolist(),
                    one.read.pieces[low:middle].tolist(),
                    strict=True,
                ):
                    children.append(Branch((*one.tokens, token), place, one.weight * chance))
            if place == window.size:
                beyond = one.weight * one.read.mass(middle, high)
                if beyond > 0.0:
                    self.found.append((one, beyond))
        return [child for child in children if child.weight > 0.0]

    def _choose(self, children: list[Branch]) -> list[Branch]:
        """The sequences to read next; those at the end of the text need no row yet."""
        inside = []
        for child in children:
            if child.end == self._window.size:
                self.found.append((child, child.weight))
            else:
                share = child.weight / self._masses[child.end - self._window.start]
                inside.append((share, child))
        inside.sort(key=lambda pair: -pair[0])
        good = sum(1 for share, _ in inside[: self._width] if share >= self._drop)
        self.left_out += [(share, child.weight) for share, child in inside[good:]]
        return [child for _, child in inside[:good]]

    def _spans_at(self, place: int) -> list[Span]:
        found = self._spans.get(place)
        if found is None:
            text = self._window.text[place - self._window.start :]
            found = self._spans[place] = spans(self._index, text)
        return found
