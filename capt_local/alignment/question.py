"""What an alignment is asked at one step, what it is shown, and what it must be able to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from capt_local.tokenization.vocabulary import BoolArray, IntArray

FloatArray = npt.NDArray[np.float64]
Probabilities = npt.NDArray[np.float32]
Prepared = TypeVar("Prepared")
# Keeps an underflow from dividing by 0, and changes nothing else.
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Question(Generic[Prepared]):
    """Tokens of the target whose probability under a proxy is wanted.

    The same question goes to expert and base, so what depends on neither of them is kept with it.

    Attributes:
        wanted: what stands for each token (an event, or a piece), shape (n,); negative where the
            proxies have no say.
        prior: the target's probability of each token, shape (n,).
        prepared: what the alignment worked out for this question, by the bytes that its pieces
            start after.
    """

    wanted: IntArray
    prior: FloatArray
    prepared: dict[tuple[bytes, ...], Prepared] = field(default_factory=dict)

    @property
    def has_say(self) -> BoolArray:
        """Whether the proxies have a say on each token, shape (n,)."""
        return self.wanted >= 0


class Back(NamedTuple):
    """The place some tokens back, from where a longer piece might have come instead of them.

    Attributes:
        row: the proxy's probabilities there, shape (vocabulary,).
        token: the one that came.
        rest: bytes of all tokens from there on.
    """

    row: Probabilities
    token: int
    rest: bytes


class View(NamedTuple):
    """What a proxy shows of its state after a text.

    Attributes:
        row: its probabilities, shape (vocabulary,).
        back: one token back, two back, ... as far as the alignment looks.
    """

    row: Probabilities
    back: Sequence[Back] = ()

    def coverings(self) -> Iterator[tuple[Back, float]]:
        """Each place back, with one over the probability of the tokens that came from there on."""
        inverse = 1.0
        for back in self.back:
            inverse /= max(float(back.row[back.token]), TINY)
            yield back, inverse


class Alignment(Protocol[Prepared]):
    """What a proxy's row says about tokens of the target.

    Attributes:
        follows_tokens: whether the proxy takes the target's tokens as they are.
        depth: how many tokens back it looks.
        floor: added to the probabilities of both proxies before they are compared.
        most: how many of the target's likeliest tokens it can compare; None: all.
    """

    follows_tokens: bool
    depth: int
    floor: float
    most: int | None

    def ask(
        self, tokens: IntArray, prior: FloatArray, *, start: bool = False
    ) -> Question[Prepared]:
        """The question for some tokens of the target.

        Args:
            tokens: ascending, shape (n,).
            prior: the target's probability of each, shape (n,).
            start: whether the tokens begin a text whose leading space is the tokenizer's own.
        """
        ...

    def probability(self, question: Question[Prepared], view: View) -> FloatArray:
        """The probability of each token in question, shape (n,); 0 where there is no say."""
        ...
