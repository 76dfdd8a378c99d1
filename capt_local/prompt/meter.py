"""A budget for programs that came with a model: time, memory and output.

A chat template is a program by strangers. Every value that it makes passes through here and is
weighed as a tree (characters, items, and what they hold), so that each single operation on values
is short; the number of operations, the memory they make and the time they take are then counted.
"""

from __future__ import annotations

import time
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass, replace
from itertools import islice

from jinja2 import Undefined
from jinja2.runtime import LoopContext


class LimitReached(Exception):
    """A template went over its budget; the text names which and holds nothing else."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one rendering may take. Templates of published models take a tenth of it.

    Attributes:
        value: weight of any single value: its characters, items and bytes together.
        depth: nesting of lists and dictionaries.
        output: characters written, those inside macros and blocks included.
        work: operations, plus an eighth of the weight of what they make.
        seconds: processor time of the thread that renders; a pause of the garbage collector counts.
    """

    value: int = 1 << 16
    depth: int = 16
    output: int = 1 << 18
    work: int = 200_000
    seconds: float = 2.5

    def for_messages(self, count: int) -> Limits:
        """The limits for a conversation: a long one may take more work, time and output."""
        factor = 1 + count // 50
        return replace(
            self,
            output=self.output * factor,
            work=self.work * factor,
            seconds=self.seconds * factor,
        )


class Meter:
    """Counts what one rendering takes."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._work = 0
        self._output = 0
        self._until = time.thread_time() + limits.seconds

    def step(self, weight: int = 0) -> None:
        """One operation that makes a value of so much weight.

        Raises:
            LimitReached: too many operations, or too much time.
        """
        self._work += 1 + weight // 8
        if self._work > self.limits.work:
            raise LimitReached("it takes too many operations")
        # Processor time, so that a busy machine does not refuse what an idle one accepts.
        if time.thread_time() > self._until:
            raise LimitReached("it takes too long")

    def written(self, length: int) -> None:
        """Characters of output.

        Raises:
            LimitReached: too much output.
        """
        self.step(length)
        self._output += length
        if self._output > self.limits.output:
            raise LimitReached("it writes too much")

    def expect(self, weight: int) -> None:
        """Refuses a value before it is made.

        Raises:
            LimitReached: it would be too large.
        """
        if weight > self.limits.value:
            raise LimitReached("it makes a value that is too large")

    def measured(self, value: object) -> object:
        """Weighs a value that was just made; an iterator becomes a list.

        Raises:
            LimitReached: it is too large or too deep, or holds what is not data.
        """
        if isinstance(value, _LAZY) and not isinstance(value, LoopContext):
            value = list(islice(value, self.limits.value + 1))
        self.step(self._weight(value, 0) if isinstance(value, _SIZED) else 0)
        return value

    def touched(self, value: object) -> object:
        """A part of a value that was weighed before, or a yes or no about such values."""
        self.step(len(value) if isinstance(value, _SIZED) and not isinstance(value, int) else 0)
        return value

    def _weight(self, value: object, depth: int) -> int:
        if isinstance(value, str):
            weight = 1 + len(value)
        elif isinstance(value, int):
            weight = 1 + value.bit_length() // 8
        elif isinstance(value, range):
            weight = 1 + len(value)
        elif value is None or isinstance(value, float | Undefined):
            weight = 1
        elif isinstance(value, _CONTAINERS):
            weight = self._weight_of_items(value, depth + 1)
        else:
            # Such an object could hold more than can be seen from here, itself included.
            raise LimitReached(f"it puts a {type(value).__name__} into a list")
        self.expect(weight)
        return weight

    def _weight_of_items(
        self, items: list[object] | tuple[object, ...] | Mapping[object, object], depth: int
    ) -> int:
        if depth > self.limits.depth:
            raise LimitReached("it nests lists too deeply")
        self.expect(len(items))
        weight = 1
        for item in items:
            weight += self._weight(item, depth)
            if isinstance(items, Mapping):
                weight += self._weight(items[item], depth)
            self.expect(weight)
        return weight


_LAZY = (Iterator, KeysView, ValuesView, ItemsView)
_CONTAINERS = (list, tuple, dict)
_SIZED = (str, int, range, *_CONTAINERS)
