"""Drafts from what has been written before: notes are copied from, and phrases come again.

The last few tokens are looked up in the prompt and the answer; what followed them there is the
draft (prompt lookup decoding, Saxena 2023).
"""

from __future__ import annotations

from capt_local.decoding.rules import Distribution
from capt_local.decoding.speculate.draft import Draft, GoOn
from capt_local.decoding.trio import Trio

_LONGEST = 6
_SHORTEST = 2


class Lookup:
    """See the module. A grade is the length of the match, less the shortest one."""

    name = "lookup"
    leader: str | None = None
    # Measured on summaries of visits by the demo trio: 39 % after two tokens, 93 % after four.
    priors: tuple[float, ...] = (0.4, 0.7, 0.85, 0.9, 0.95)

    def __init__(self) -> None:
        """Knows no text yet."""
        self._tokens: list[int] = []
        # Where the latest run of each length ended, and the one before it: the end of the text
        # itself is no place to copy from.
        self._ends: dict[tuple[int, ...], tuple[int, int]] = {}

    def start(self, trio: Trio) -> None:
        """Forgets the text before."""
        self._tokens.clear()
        self._ends.clear()

    def grade(self, trio: Trio) -> int | None:
        """The longest match."""
        found = self._find(trio.tokens)
        return None if found is None else found[0]

    def seen(self, trio: Trio, token: int, here: Distribution) -> None:
        """Not known without a draft."""

    def draft(self, trio: Trio, most: int, go_on: GoOn) -> Draft:
        """What followed the longest match; over the end of the text into the match itself."""
        found = self._find(trio.tokens)
        if found is None:
            return Draft([], [])
        grade, place = found
        text = list(trio.tokens)
        while len(text) - len(trio.tokens) < most and go_on(grade):
            text.append(text[place + len(text) - len(trio.tokens)])
        drafted = text[len(trio.tokens) :]
        return Draft(drafted, [grade] * len(drafted))

    def _find(self, tokens: list[int]) -> tuple[int, int] | None:
        """Grade of the longest match, and where its continuation stands."""
        self._read(tokens)
        size = len(tokens)
        for length in range(min(_LONGEST, size), _SHORTEST - 1, -1):
            latest, before = self._ends.get(tuple(tokens[size - length :]), (0, 0))
            place = before if latest == size else latest
            if place:
                return length - _SHORTEST, place
        return None

    def _read(self, tokens: list[int]) -> None:
        """Takes in what has come since; another text starts anew."""
        seen = len(self._tokens)
        if tokens[:seen] != self._tokens:
            self._tokens.clear()
            self._ends.clear()
            seen = 0
        for end in range(seen + 1, len(tokens) + 1):
            for length in range(_SHORTEST, min(_LONGEST, end) + 1):
                key = tuple(tokens[end - length : end])
                self._ends[key] = (end, self._ends.get(key, (0, 0))[0])
        self._tokens += tokens[seen:]
