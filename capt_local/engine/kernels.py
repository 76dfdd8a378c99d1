"""What a batch of several tokens costs, by the kernels that compute it."""

from __future__ import annotations

from typing import NamedTuple

# In batches of one token, measured on two cores on weights of 0.5 and 1.1 B: the first token of
# all and each further one; where kernels take four at once, a whole four of them; where they take
# tiles of 16, a batch of two and each further token. A GPU reads the weights once for all.
_FURTHER, _ON_GPU = 0.22, 0.03
_READING, _ONE_OF_FOURS, _FOUR = 0.1, 0.9, 1.45
_TWO_OF_TILE, _FURTHER_OF_TILE = 1.65, 0.17


class Kernels(NamedTuple):
    """Those of one model.

    Attributes:
        by_fours: whether they take four tokens of a batch at once; two or three cost more.
        on_gpu: whether a GPU computes at least a part of the model.
        tiles: whether they take tiles of 16 tokens (AMX).
    """

    by_fours: bool = False
    on_gpu: bool = False
    tiles: bool = False

    def cost(self, size: int) -> float:
        """What a batch of so many tokens costs, in batches of one."""
        if self.by_fours:
            return _READING + _ONE_OF_FOURS * (size % 4) + _FOUR * (size // 4)
        if self.tiles and size > 1:
            return _TWO_OF_TILE + _FURTHER_OF_TILE * (size - 2)
        return 1.0 + (_ON_GPU if self.on_gpu else _FURTHER) * (size - 1)

    def filled(self, size: int) -> int:
        """The size that a batch is filled up to since that is cheaper, or its own."""
        return min(range(size, size + 4), key=self.cost)
