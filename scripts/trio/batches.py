"""Token streams and their packing into rows of one context length.

Documents may run over the end of a row into the next one. Turns are never cut: one that does not
fit waits for the next row, and a document fills the gap.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trio.turns import Turn
from trio.vocab import Vocab

PROMPT_WEIGHT = 0.1
"""Loss weight of what the user says: worth learning from, but not what answers are judged by."""


@dataclass(frozen=True)
class Stream:
    """Units (documents or turns) of one kind, end to end: ids, loss weights, unit starts."""

    ids: NDArray[np.uint16]
    weights: NDArray[np.float16]
    starts: NDArray[np.int64]
    whole: bool

    def __len__(self) -> int:
        """Number of units."""
        return len(self.starts) - 1

    def unit(self, i: int) -> tuple[NDArray[np.uint16], NDArray[np.float16]]:
        """Ids and weights of unit i."""
        span = slice(self.starts[i], self.starts[i + 1])
        return self.ids[span], self.weights[span]


def _stream(units: Sequence[tuple[list[int], list[float]]], whole: bool) -> Stream:
    starts = np.cumsum([0, *(len(ids) for ids, _ in units)])
    ids = np.array([t for unit, _ in units for t in unit], dtype=np.uint16)
    weights = np.array([w for _, unit in units for w in unit], dtype=np.float16)
    return Stream(ids, weights, starts, whole)


def text_stream(texts: Sequence[str], vocab: Vocab) -> Stream:
    """Documents: start token, text, stop token."""
    units = []
    for text in texts:
        body = [*vocab.encode(text), *vocab.stop]
        # Where no stop token exists, the next document's start token is the one to predict.
        units.append(([vocab.start, *body], [0.0 if vocab.stop else 1.0] + [1.0] * len(body)))
    return _stream(units, whole=False)


def turn_stream(turns: Sequence[Turn], vocab: Vocab, context: int, seed: int) -> Stream:
    """Turns that fit into a row; the start token in front is not predicted."""
    rng, units = random.Random(seed), []
    for turn in turns:
        ids, answer = vocab.turn(turn, apart=rng.random() < 0.3)
        if len(ids) < context:
            weights = [0.0] + [PROMPT_WEIGHT] * answer + [1.0] * (len(ids) - answer)
            units.append(([vocab.start, *ids], weights))
    return _stream(units, whole=True)


class Packer:
    """Rows of `context + 1` tokens drawn from streams, each stream shuffled anew per epoch."""

    def __init__(self, streams: Mapping[str, Stream], context: int, seed: int) -> None:
        """Streams by name; their shares come with every row, so that stages can differ."""
        self.streams = {name: stream for name, stream in streams.items() if len(stream)}
        self.mean = {n: len(s.ids) / len(s) for n, s in self.streams.items()}
        self.context = context
        self.rng = random.Random(seed)
        self.orders: dict[str, list[int]] = {name: [] for name in streams}
        self.epochs = dict.fromkeys(streams, 0)
        self.carry: tuple[NDArray[np.uint16], NDArray[np.float16]] | None = None
        self.waiting: tuple[NDArray[np.uint16], NDArray[np.float16]] | None = None

    def _next_unit(self, name: str) -> tuple[NDArray[np.uint16], NDArray[np.float16]]:
        if not self.orders[name]:
            self.orders[name] = list(range(len(self.streams[name])))
            self.rng.shuffle(self.orders[name])
            self.epochs[name] += 1
        return self.streams[name].unit(self.orders[name].pop())

    def _pick(self, shares: Mapping[str, float], whole: bool | None = None) -> str:
        names = [n for n in shares if n in self.streams]
        names = [n for n in names if whole is None or self.streams[n].whole == whole]
        return self.rng.choices(names, [shares[n] / self.mean[n] for n in names])[0]

    def row(self, shares: Mapping[str, float]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids and loss weights [context + 1]; `shares` are shares of the tokens."""
        ids = np.zeros(self.context + 1, np.int64)
        weights = np.zeros(self.context + 1, np.float32)
        filled = 0
        while filled <= self.context:
            room = self.context + 1 - filled
            part, weight = self._draw(shares, room)
            end = min(filled + len(part), self.context + 1)
            ids[filled:end], weights[filled:end] = part[:room], weight[:room]
            if len(part) > room:
                self.carry = (part[room:], weight[room:])
            filled = end
        return ids, weights

    def _draw(
        self, shares: Mapping[str, float], room: int
    ) -> tuple[NDArray[np.uint16], NDArray[np.float16]]:
        if self.carry is not None:
            unit, self.carry = self.carry, None
            return unit
        if self.waiting is not None and len(self.waiting[0]) <= room:
            unit, self.waiting = self.waiting, None
            return unit
        name = self._pick(shares)
        unit = self._next_unit(name)
        if not self.streams[name].whole or len(unit[0]) <= room:
            return unit
        if self.waiting is None:
            self.waiting = unit
        return self._next_unit(self._pick(shares, whole=False))

    def state(self) -> dict[str, object]:
        """What a checkpoint needs to go on with the same rows."""
        return {
            "rng": self.rng.getstate(),
            "orders": self.orders,
            "epochs": self.epochs,
            "carry": self.carry,
            "waiting": self.waiting,
        }

    def restore(self, state: dict[str, object]) -> None:
        """Take up a saved state."""
        self.rng.setstate(state["rng"])  # type: ignore[arg-type]
        for name in ("orders", "epochs", "carry", "waiting"):
            setattr(self, name, state[name])
