"""One `llama_batch`, allocated once and filled through numpy."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np


class Batch:
    """Room for `size` tokens, each of one sequence.

    Args:
        api: the binding's C functions.
        size: tokens.

    Attributes:
        raw: what `llama_decode` takes.
        size: tokens that fit.
    """

    def __init__(self, api: Any, size: int) -> None:
        """Allocates the arrays and ties them to the C structure."""
        self.size = size
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._counts = np.ones(size, np.int32)  # each token belongs to one sequence
        self._sequences = np.zeros(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        self._offsets = np.arange(size, dtype=np.int32)
        # llama.cpp wants a pointer to the sequence of each token.
        first = self._sequences.ctypes.data
        self._pointers = first + 4 * np.arange(size, dtype=np.uintp)
        pointer_to_int = ctypes.POINTER(ctypes.c_int32)
        self.raw = api.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(pointer_to_int),
            embd=None,
            pos=self._positions.ctypes.data_as(pointer_to_int),
            n_seq_id=self._counts.ctypes.data_as(pointer_to_int),
            seq_id=self._pointers.ctypes.data_as(ctypes.POINTER(pointer_to_int)),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill_one(self, token: int, position: int, row: bool) -> None:
        """One token of the running sequence; the path of every step, so without slices."""
        self._tokens[0] = token
        self._positions[0] = position
        self._sequences[0] = 0
        self._wanted[0] = row
        self.raw.n_tokens = 1

    def fill(
        self,
        tokens: Sequence[int],
        position: int,
        rows: int,
        padding: int = 0,
        *,
        sequence: int = 0,
    ) -> None:
        """Consecutive tokens of one sequence, with logits after the last `rows`.

        Tokens that mean nothing, `padding` of them, are put behind.
        """
        count, size = len(tokens), len(tokens) + padding
        self._tokens[:count] = tokens
        self._tokens[count:size] = 0
        np.add(self._offsets[:size], position, out=self._positions[:size])
        self._sequences[:size] = sequence
        self._wanted[:size] = 0
        self._wanted[count - rows : count] = 1
        self.raw.n_tokens = size

    def fill_lanes(
        self, first: int, tokens: Sequence[int], positions: Sequence[int], rows: Sequence[bool]
    ) -> None:
        """One token of each of the sequences `first`, `first` + 1, ..."""
        count = len(tokens)
        self._tokens[:count] = tokens
        self._positions[:count] = positions
        np.add(self._offsets[:count], first, out=self._sequences[:count])
        self._wanted[:count] = rows
        self.raw.n_tokens = count
