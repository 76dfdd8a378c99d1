"""What a proxy's probabilities say about the target's tokens.

The name of an alignment stands here, without numpy, so that the command line has it at once.
"""

from __future__ import annotations

from enum import StrEnum


class Align(StrEnum):
    """How tokens of the target are looked up at a proxy: by bytes, or as the paper published it."""

    PROJECTION = "projection"
    CAPT_PAPER = "capt-paper"
