"""The names of the alignments; without numpy, so that the command line knows them at once."""

from __future__ import annotations

from enum import StrEnum


class Align(StrEnum):
    """How tokens of the target are looked up at a proxy.

    PROJECTION is the default. EXACT sums over all tokenizations, with a beam, at many more
    positions a step. The others are there to be compared with it and cost no more than it does.
    """

    PROJECTION = "projection"
    EXACT = "exact"
    PREFIX_MASS = "prefix-mass"
    FIRST_PIECE = "first-piece"
    CAPT_PAPER = "capt-paper"

    @property
    def cost(self) -> str:
        """What a step costs beside one position for each new token of a proxy."""
        if self is Align.EXACT:
            return "about three more positions a step and proxy, on sequences of their own"
        return "no extra positions"
