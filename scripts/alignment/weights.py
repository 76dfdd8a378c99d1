"""Weights, evidence, plausibility, candidates and alignment, from one walk along each text.

What each product T^a E^b A^-c gave to each token is enough to know any mixture of them under any
evidence afterwards: p(token) = sum_i w_i P_i(token), and w follows from the tokens before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from math import log

import numpy as np

from capt_local.alignment.fit import AnyAlignment
from capt_local.alignment.question import FloatArray
from capt_local.decoding.combine import logs, plausible, products
from capt_local.decoding.options import FORGETTING, GRID, Powers
from scripts.alignment.walk import Models, Place, ask, of_token, signed

FINE: tuple[Powers, ...] = tuple(
    (a, b, c)
    for a, b, c in product(
        (0, 0.25, 0.5, 0.75, 1.0), (0, 0.5, 0.75, 1.0, 1.25), (0, 0.25, 0.5, 0.75, 1.0)
    )
    if (b or not c) and (a or b)
)


@dataclass(frozen=True, slots=True)
class Evidence:
    """How the weights of a mixture follow a text.

    Attributes:
        forgetting: factor on earlier evidence at each token.
        frozen: after so many tokens the weights stay; None: never.
    """

    forgetting: float = FORGETTING
    frozen: int | None = None

    @property
    def name(self) -> str:
        """For tables."""
        if self.frozen is None:
            return f"forgetting {self.forgetting:g}"
        return f"{self.forgetting:g}, frozen after {self.frozen}"


@dataclass(frozen=True, slots=True)
class Setting:
    """One combination of what cannot be changed after the walk.

    Attributes:
        alignment: its name in `alignments`.
        plausibility: see `CombineOptions`.
        most: the likeliest candidates; None: all.
        floor: instead of the alignment's own.
    """

    alignment: str
    plausibility: float
    most: int | None = None
    floor: float | None = None


@dataclass(slots=True)
class Gains:
    """What each product gave to each token of some texts, in nats.

    Attributes:
        powers: the exponents of each product.
        texts: one array for each text, shape (tokens, m).
        sizes: bytes of each text.
    """

    powers: tuple[Powers, ...]
    texts: list[FloatArray] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def fixed(self, powers: Powers) -> float:
        """Bits per byte of one product."""
        place = self.powers.index(powers)
        return -sum(float(text[:, place].sum()) for text in self.texts) / self._bits

    def mixed(self, grid: Sequence[Powers], how: Evidence) -> float:
        """Bits per byte of a mixture, each token predicted with the weights of those before."""
        places = [self.powers.index(powers) for powers in grid]
        return sum(mixed_nats(text[:, places], how) for text in self.texts) / self._bits

    def best_fixed(self) -> tuple[Powers, float]:
        """The best single product."""
        sums = [self.fixed(powers) for powers in self.powers]
        place = int(np.argmin(sums))
        return self.powers[place], sums[place]

    @property
    def _bits(self) -> float:
        return sum(self.sizes) * log(2)


def mixed_nats(gains: FloatArray, how: Evidence) -> float:
    """-log p of the tokens under a mixture.

    Args:
        gains: what each member gave to each token, shape (tokens, m).
        how: as in `decode.evidence`.
    """
    evidence, total = np.zeros(gains.shape[1]), 0.0
    for number, came in enumerate(gains):
        shares = np.exp(evidence - evidence.max())
        best = came.max()
        total -= best + log(float(np.exp(came - best) @ shares) / float(shares.sum()))
        if how.frozen is None or number < how.frozen:
            evidence = how.forgetting * evidence + came
            evidence -= evidence.max()
    return total


class Study:
    """Collects what every product gives to every token under every setting.

    Args:
        alignments: by name.
        settings: what is to be compared.
        powers: of the products.
    """

    def __init__(
        self,
        alignments: dict[str, AnyAlignment],
        settings: Sequence[Setting],
        powers: Sequence[Powers],
    ) -> None:
        self._alignments = alignments
        self.powers = tuple(dict.fromkeys((*GRID, *powers)))
        self._signed = signed(self.powers)
        self.gains = {setting: Gains(self.powers) for setting in settings}

    def add(self, models: Models, text: bytes) -> None:
        """Walks one text."""
        found: dict[Setting, list[FloatArray]] = {setting: [] for setting in self.gains}
        for place in models.walk(text):
            for setting, came in self._at(place).items():
                found[setting].append(came)
        for setting, gains in self.gains.items():
            gains.texts.append(np.array(found[setting]))
            gains.sizes.append(len(text))

    def _at(self, place: Place) -> dict[Setting, FloatArray]:
        # The likeliest n are the same tokens by whichever limit there are n of them.
        known: dict[tuple[str, float, int], FloatArray] = {}
        result = {}
        for setting in self.gains:
            alignment = self._alignments[setting.alignment]
            mosts = [most for most in (setting.most, alignment.most) if most is not None]
            own = plausible(place.row, setting.plausibility, min(mosts, default=None))
            floor = alignment.floor if setting.floor is None else setting.floor
            key = (setting.alignment, floor, len(own.tokens))
            if key not in known:
                question, said = ask(alignment, own, place.views, start=place.start)
                rows = logs(said, question.has_say, own.logp, floor)
                known[key] = of_token(place, own, products(own, rows, self._signed).logp)
            result[setting] = known[key]
        return result
