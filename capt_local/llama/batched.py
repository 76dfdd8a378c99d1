"""Several texts at once on one context: each is a sequence with memory of its own, a lane.

Short parts of many texts go through the model together; long ones (prompts) by themselves, in
batches that depend on nothing but the text. What a text gives is the same bit for bit whatever runs
beside it: a backend computes a token alike at every place of batches of some sizes. Which these are
is tried out, and only these are used: a batch that would have another size is filled up with tokens
for neighbours, who forget them at once. Where there are none, each lane has batches of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from capt_local.errors import CaptError, MemoryShortage
from capt_local.llama.context import Context, Rows, cells_of_lane, is_recurrent
from capt_local.llama.devices import Kernels
from capt_local.llama.library import library
from capt_local.llama.model import LlamaModel, RunningSequence, are_finite
from capt_local.llama.options import LoadOptions
from capt_local.llama.resources import MemoryEstimate, available_memory, estimate
from capt_local.llama.weights import Weights

# Tokens of a text that still go along with those of others; beyond, a batch of its own pays.
MOST_TOGETHER = 4
_CELLS, _TRIED = 32, 4  # tokens of text, and tokens behind it, that sizes of batches are tried on
_PAD = 0  # any token will do; nobody reads what it gives
_FEW = 4  # rows that a step may need; space for so many is kept


class Part(NamedTuple):
    """Tokens to append to a lane, and how many of the last of them want their logits."""

    lane: Lane
    tokens: Sequence[int]
    rows: int


class Lane(RunningSequence):
    """One sequence of several on a context.

    Attributes:
        rows: what its last part gave, in memory of its own, so that no other lane overwrites them.
    """

    _owner: Lanes

    def __init__(self, owner: Lanes, context: Context, number: int, scratch: int | None) -> None:
        super().__init__(owner, context, number, scratch)
        self.batch_floor = owner.batch_floor
        self._kept: Rows = np.empty((1, len(self.vocabulary)), np.float32)
        self.rows = self._kept[:0]

    def extend(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        self._context.scale_adapters(self.adapter_scales)
        found = super().extend(tokens, rows)
        self._owner.decoded += len(tokens)
        self.make_room(rows)
        self.rows[:] = found
        return self.rows

    def step(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        self._check(len(tokens), rows)
        (result,) = self._owner.run([(self, tokens, rows)])
        if isinstance(result, CaptError):
            raise result
        return result

    def peek(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        self._context.scale_adapters(self.adapter_scales)
        return super().peek(tokens, rows)

    def make_room(self, count: int) -> None:
        """Makes space for so many rows. Many are needed for prompts alone, so they do not stay."""
        width = len(self.vocabulary)
        if count > _FEW:
            self.rows = np.empty((count, width), np.float32)
            return
        if len(self._kept) < count:
            self._kept = np.empty((_FEW, width), np.float32)
        self.rows = self._kept[:count]

    def close(self) -> None:
        """Nothing: all lanes close together."""


class Lanes:
    """One context on shared weights, with several sequences. Not for use from two threads.

    Args:
        weights: kept until `close`.
        options: of the context; each lane holds as many tokens as a context of its own would.
        count: lanes that are wanted; there are at least two.
        name: for error messages, such as the role in the trio.
        batch_floor: of the model that has one running sequence.

    Attributes:
        slots: the models, one a lane.
        max_tokens_together: so many tokens of a lane go along with those of others.
        chunk: so many tokens of a long text go into one batch.
        decoded: tokens that texts have had decoded so far.
        sizes: of batches, which make no difference to any bit.
        should_stop: called while long texts are computed; True ends that with `Cancelled`.
    """

    def __init__(
        self,
        weights: Weights,
        options: LoadOptions,
        count: int,
        *,
        name: str = "model",
        batch_floor: int = 1,
    ) -> None:
        self.name = name
        self.weights = weights.retain()
        self.options = options
        self.batch_floor = batch_floor
        self.should_stop: Callable[[], bool] | None = None
        self.max_tokens_together = MOST_TOGETHER
        self.decoded = 0
        self.sizes: tuple[int, ...] = ()
        count = max(count, 2)
        try:
            # A memory that cannot forget is read ahead on a copy (`peek`), and takes no token that
            # nobody asked for.
            self.can_rewind = not is_recurrent(library().api, weights)
            scratch = None if self.can_rewind else count
            self._context = Context(weights, options, lanes=count + (scratch is not None))
        except BaseException:
            weights.close()
            raise
        self.limit = self._context.limit
        self._batch = self._context.batch
        self.chunk = self._context.chunk
        self.slots = [Lane(self, self._context, number, scratch) for number in range(count)]
        self._kernels = weights.metadata.kernels
        try:
            if self.can_rewind:
                self._choose_sizes()
        except BaseException:
            self.close()
            raise

    def run(self, parts: Sequence[tuple[Lane, Sequence[int], int]]) -> list[Rows | CaptError]:
        """Appends tokens to lanes, one token of each at a time.

        Args:
            parts: lane, tokens, and after how many of the last of them logits are wanted; at most
                one for each lane.

        Returns:
            For each part its rows, shape (rows, vocabulary), which the next part of the same lane
            overwrites, or what went wrong with it: then its lane is what it was before, or empty
            where the memory cannot forget a part. The others are not concerned.
        """
        done: dict[int, Rows | CaptError] = {}
        # Adapters belong to the context: lanes with other scales go by themselves.
        groups: dict[tuple[float, ...], list[Part]] = {}
        for part in (wanted := [Part(*part) for part in parts]):
            if error := part.lane.overflow(len(part.tokens)):
                done[part.lane.number] = error
            else:
                groups.setdefault(part.lane.adapter_scales, []).append(part)
        for scales, together in groups.items():
            self._context.scale_adapters(scales)
            for part, result in zip(together, self._attempt(together), strict=True):
                done[part.lane.number] = result
        return [done[part.lane.number] for part in wanted]

    def share(self, source: Lane, target: Lane, length: int) -> bool:
        """Gives a lane the first tokens of another; what it held is dropped.

        Returns:
            False where the memory cannot do that: nothing has changed.
        """
        if not self.can_rewind or source is target or not 0 < length <= source.position:
            return False
        if source.adapter_scales != target.adapter_scales:
            return False
        self._context.copy_sequence(target.number, source=source.number)
        target.position = source.position
        return target.cut(length)

    def pack(self, used: Iterable[Lane]) -> None:
        """Gives these lanes the first places, if batches of neighbours are cheaper then.

        The lanes that were there are emptied.
        """
        numbers = sorted(lane.number for lane in used)
        count, sizes, kernels = len(self.slots), self.sizes, self._kernels
        packed = cost_of(tuple(range(len(numbers))), count, sizes, kernels)
        if not self.can_rewind or packed >= cost_of(tuple(numbers), count, sizes, kernels):
            return
        holes = sorted(set(range(len(numbers))).difference(numbers))
        for hole, number in zip(holes, numbers[-len(holes) :], strict=True):
            moved, other = self.slots[number], self.slots[hole]
            self._context.copy_sequence(hole, source=number)
            moved.number, other.number = hole, number
            self.slots[hole], self.slots[number] = moved, other
            other.cut(0)

    def close(self) -> None:
        """Frees the context, and the weights when nothing else uses them."""
        if self._context.open:
            self._context.close()
            self.weights.close()

    def _attempt(self, parts: Sequence[Part]) -> list[Rows | CaptError]:
        """Computes parts; where that fails, each by itself, to find the one that is to blame."""
        starts = [part.lane.position for part in parts]
        for part in parts:
            part.lane.make_room(part.rows)
        try:
            for at in range(max(len(part.tokens) for part in parts)):
                # The first token of each part, then the second of those that have one, ...
                here = {part.lane.number: part for part in parts if at < len(part.tokens)}
                for first, stop in self._spans(sorted(here)):
                    self._pass(first, stop, at, here)
        except BaseException as error:
            for part, start in zip(parts, starts, strict=True):
                part.lane.cut(start)
            if not isinstance(error, CaptError):
                raise
            if len(parts) == 1:
                return [error]
            return [self._attempt([part])[0] for part in parts]
        self.decoded += sum(len(part.tokens) for part in parts)
        found: list[Rows | CaptError] = []
        for part, start in zip(parts, starts, strict=True):
            if part.rows and not are_finite(part.lane.rows):
                part.lane.cut(start)
                found.append(part.lane.not_finite())
            else:
                found.append(part.lane.rows)
        return found

    def _spans(self, numbers: Sequence[int]) -> Sequence[tuple[int, int]]:
        """The lanes of each batch, neighbours all: llama.cpp computes no others together."""
        if not self.can_rewind:
            return [(number, number + 1) for number in numbers]
        return spans(tuple(numbers), len(self.slots), self.sizes, self._kernels)

    def _pass(self, first: int, stop: int, at: int, here: dict[int, Part]) -> None:
        """One token of each lane from `first` on, which some of them forget at once."""
        lanes = self.slots[first:stop]
        parts = [here.get(lane.number) for lane in lanes]
        tokens = [_PAD if part is None else part.tokens[at] for part in parts]
        wanted = [part is not None and at >= len(part.tokens) - part.rows for part in parts]
        asked = list(wanted)
        if any(wanted) and self.can_rewind:
            # The last layer is computed for the rows alone, and their number is a size, too.
            others = [place for place, row in enumerate(wanted) if not row]
            size = next(size for size in (*self.sizes, len(lanes)) if size >= sum(wanted))
            for place in others[: size - sum(wanted)]:
                asked[place] = True
        self._batch.fill_lanes(first, tokens, [lane.position for lane in lanes], asked)
        try:
            self._context.decode()
            for lane, part in zip(lanes, parts, strict=True):
                lane.position += part is not None
        finally:
            for lane, part in zip(lanes, parts, strict=True):
                if part is None:
                    lane.cut(lane.position)
        if any(wanted):
            places = np.cumsum(asked) - 1
            rows = self._context.rows(sum(asked))
            for part, own, place in zip(parts, wanted, places, strict=True):
                if own and part is not None:
                    part.lane.rows[at - len(part.tokens) + part.rows] = rows[place]

    def _choose_sizes(self) -> None:
        """Finds the sizes of batches that give the same bits, at every place in them."""
        count = len(self.slots)
        if self.limit < _CELLS + _TRIED:
            self.sizes = (1,)
            return
        text = [(7 + 31 * n * n) % len(self.weights.vocabulary) for n in range(_CELLS + _TRIED)]
        first = self.slots[0]
        self.sizes = (1,)
        first.extend(text[:_CELLS], 0)
        for lane in self.slots[1:]:
            self.share(first, lane, _CELLS)
        classes: dict[bytes, list[int]] = {}
        steps = {1, 2, *range(4, min(count, 8), 2), *range(8, count, 4), count}
        for size in sorted(size for size in steps if size <= count):
            self.sizes = (size,)
            lanes, found = self.slots[:size], [b""] * size
            for at in range(_TRIED):
                for lane in lanes:
                    lane.make_room(1)
                tokens = text[_CELLS : _CELLS + at + 1]
                self._pass(0, size, at, {lane.number: Part(lane, tokens, 1) for lane in lanes})
                found = [old + lane.rows.tobytes() for old, lane in zip(found, lanes, strict=True)]
            if len(set(found)) == 1:
                classes.setdefault(hashlib.sha256(found[0]).digest(), []).append(size)
            for lane in lanes:
                lane.cut(_CELLS)
        for lane in self.slots:
            lane.cut(0)
        self.sizes = best_sizes(map(tuple, classes.values()), count, self._kernels)


MOST_LANES = 256  # llama.cpp keeps sequence ids in a bit set of so many

_GPU_RESERVE = 256 << 20  # left free for the backend itself
_MIB = 1 << 20


def open_lanes(models: Mapping[str, LlamaModel], count: int) -> dict[str, Lanes]:
    """Makes `count` lanes (at least two) beside the context that each model has, by role.

    Raises:
        MemoryShortage: so many do not fit; says how many would.
    """
    count = max(count, 2)
    _check_fits(models, count)
    made: dict[str, Lanes] = {}
    try:
        for role, model in models.items():
            made[role] = Lanes(
                model.weights, model.options, count, name=role, batch_floor=model.batch_floor
            )
    except BaseException:
        for lanes in made.values():
            lanes.close()
        raise
    return made


def _check_fits(models: Mapping[str, LlamaModel], count: int) -> None:
    needed = {}  # by the first lane of a model; more of them take its KV cache again
    for role, model in models.items():
        cells = cells_of_lane(model.weights, model.options)
        found = estimate(model.weights.header, replace(model.options, context=cells))
        needed[role] = replace(found, weights=0, movable=(0,) * found.layers, adapters=0)
    beside = [one.beside_gpu(models[role].metadata.gpu_layers) for role, one in needed.items()]
    most = min(count, _fitting(beside, available_memory()))
    for device in library().devices():
        there = []
        for role, one in needed.items():
            taken = one.on_gpus(models[role].metadata.devices)
            if device.name in taken:
                there.append(replace(one, kv_cache=taken[device.name] - one.buffers))
        if there:
            most = min(most, _fitting(there, device.free - _GPU_RESERVE))
    if most >= count:
        return
    each = sum(one.kv_cache for one in needed.values()) / _MIB
    offer = f"{most} would fit" if most > 1 else "one at a time is all that fits"
    raise MemoryShortage(
        f"Not enough memory to answer {count} requests at once: each takes {each:,.0f} MiB; "
        f"{offer}. Ask for fewer at once, or use a smaller --ctx-size."
    )


def _fitting(needed: list[MemoryEstimate], free: int) -> int:
    """How many lanes fit beside the buffers."""
    each = sum(one.kv_cache for one in needed)
    return int(max(0, free - sum(one.buffers for one in needed)) // max(each, 1))


@lru_cache(maxsize=4096)
def spans(
    numbers: tuple[int, ...], count: int, sizes: tuple[int, ...], kernels: Kernels
) -> tuple[tuple[int, int], ...]:
    """The cheapest ranges (first, one behind the last) of neighbours that hold some lanes.

    The `numbers` of these lanes ascend, of `count` in all; a range has one of the `sizes`.
    """
    # The cheapest way to cover the wanted lanes below each lane, and the range that ends there.
    costs = [0.0] + [float("inf")] * count
    ranges: list[tuple[int, int] | None] = [None] * (count + 1)
    wanted = set(numbers)
    for stop in range(1, count + 1):
        if stop - 1 not in wanted:
            costs[stop] = costs[stop - 1]
        for size in sizes:
            if size <= stop and costs[stop - size] + kernels.cost(size) < costs[stop]:
                costs[stop] = costs[stop - size] + kernels.cost(size)
                ranges[stop] = (stop - size, stop)
    found: list[tuple[int, int]] = []
    stop = count
    while stop:
        last = ranges[stop]
        stop = stop - 1 if last is None else last[0]
        found += [last] if last is not None else []
    return tuple(reversed(found))


def cost_of(
    numbers: tuple[int, ...], count: int, sizes: tuple[int, ...], kernels: Kernels
) -> float:
    """What the batches for these lanes cost, in batches of one; see `spans`."""
    return sum(kernels.cost(stop - at) for at, stop in spans(numbers, count, sizes, kernels))


def best_sizes(classes: Iterable[tuple[int, ...]], count: int, kernels: Kernels) -> tuple[int, ...]:
    """Of several sets of sizes the one that serves all lanes, and one alone, at the least cost."""

    def price(sizes: tuple[int, ...]) -> float:
        return sum(cost_of(lanes, count, sizes, kernels) for lanes in (tuple(range(count)), (0,)))

    def covers(sizes: tuple[int, ...]) -> bool:
        held = spans(tuple(range(count)), count, sizes, kernels)
        return sum(stop - first for first, stop in held) == count

    return min(filter(covers, classes), key=price)
