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

from capt_local.errors import CaptError, ContextOverflow, MemoryShortage, NumericalError
from capt_local.llama.context import Context, Rows, can_rewind, cells_of_lane
from capt_local.llama.devices import Kernels
from capt_local.llama.library import DeferredInterrupts, library
from capt_local.llama.memory import MemoryEstimate, available_memory, estimate
from capt_local.llama.model import LlamaModel, OnWeights
from capt_local.llama.options import LoadOptions, scales_of
from capt_local.llama.weights import Weights

# Tokens of a text that still go along with those of others; beyond, a batch of its own pays.
MOST_TOGETHER = 4
_CELLS, _TRIED = 32, 4  # tokens of text, and tokens behind it, that sizes of batches are tried on
_PAD = 0  # any token will do; nobody reads what it gives


class Lanes:
    """One context on shared weights, with several sequences. Not for use from two threads.

    Args:
        weights: kept until `close`.
        options: of the context; each lane holds as many tokens as a context of its own would.
        count: lanes that are wanted; there are at least two.
        name: for error messages, such as the role in the trio.
        batch_floor: of the model that has one running sequence.

    Attributes:
        name, batch_floor: as given.
        weights: as given.
        slots: the models, one a lane.
        max_tokens_together: so many tokens of a lane go along with those of others.
        chunk: so many tokens of a long text go into one batch.
        decoded: tokens that texts have had decoded so far.
        sizes: of batches, which make no difference to any bit.
        should_stop: asked while long texts are computed; True ends that with `Cancelled`.
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
        """Allocates, and tries out how the backend computes."""
        self.name = name
        self.weights = weights.retain()
        self.options = options
        self.should_stop: Callable[[], bool] | None = None
        self.max_tokens_together = MOST_TOGETHER
        self.chunk = options.batch_size(weights.metadata.gpu_layers > 0)
        self.decoded = 0
        self.sizes: tuple[int, ...] = ()
        self._open = True
        count = max(count, 2)
        self.batch_floor = batch_floor
        # A memory that cannot forget is read ahead on a copy; see `peek`.
        self._scratch = None if can_rewind(library().api, weights, options) else count
        try:
            sequences = count + (self._scratch is not None)
            self._context = Context(weights, options, lanes=sequences)
        except BaseException:
            weights.close()
            raise
        self._batch = self._context.batch
        self.slots = tuple(Lane(self, number) for number in range(count))
        # A memory that cannot let go of one token takes none that nobody asked for.
        self._fills = self._context.can_rewind
        self._kernels = weights.metadata.kernels
        try:
            if self._fills:
                self._choose_sizes()
        except BaseException:
            self.close()
            raise

    @property
    def limit(self) -> int:
        """Tokens that a lane holds."""
        return self._context.limit

    @property
    def can_rewind(self) -> bool:
        """Whether the memory can forget a part of a lane."""
        return self._context.can_rewind

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
            if error := self._overflow(part):
                done[part.lane.number] = error
            else:
                groups.setdefault(part.lane.adapter_scales, []).append(part)
        for together in groups.values():
            for part, result in zip(together, self._attempt(together, self._passes), strict=True):
                done[part.lane.number] = result
        return [done[part.lane.number] for part in wanted]

    def extend(self, lane: Lane, tokens: Sequence[int], rows: int) -> Rows:
        """Appends tokens to a lane, in batches of their own; see `decoding.proxy.Model.extend`."""
        part = Part(lane, tokens, rows)
        result = self._overflow(part) or self._attempt([part], self._alone)[0]
        if isinstance(result, CaptError):
            raise result
        return result

    def peek(self, lane: Lane, tokens: Sequence[int], rows: int) -> Rows:
        """Logits behind tokens that a lane does not get; see `decoding.proxy.Model.peek`."""
        if error := self._overflow(Part(lane, tokens, rows)):
            raise error
        scratch = self._scratch
        if scratch is None:
            raise ValueError("a memory that can be rewound is not copied")
        found = np.empty((rows, len(self.weights.vocabulary)), np.float32)
        self._context.scale_adapters(lane.adapter_scales)
        self._context.copy_sequence(scratch, source=lane.number)
        try:
            for at, token in enumerate(tokens):
                wanted = at >= len(tokens) - rows
                self._batch.fill((token,), lane.position + at, int(wanted), sequence=scratch)
                self._context.decode()
                if wanted:
                    found[at - len(tokens) + rows] = self._context.rows(1)[0]
        finally:
            self._context.drop_sequence(scratch)
        if not _are_numbers(found):
            raise self._not_numbers()
        return found

    def _overflow(self, part: Part) -> ContextOverflow | None:
        count = part.lane.position + len(part.tokens)
        return ContextOverflow({self.name: count}, self.limit) if count > self.limit else None

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
        return self.cut(target, length)

    def cut(self, lane: Lane, length: int) -> bool:
        """Drops the end of a lane; see `decoding.proxy.Model.rewind`."""
        try:
            kept = self._context.cut(length, lane.number)
        except BaseException:  # an interrupt: nobody knows what is there
            lane.position = 0
            self._context.cut(0, lane.number)
            raise
        lane.position = length if kept else 0
        return kept

    def close(self) -> None:
        """Frees the context, and the weights when nothing else uses them."""
        if self._open:
            self._open = False
            self._context.close()
            self.weights.close()

    def _attempt(
        self, parts: Sequence[Part], compute: Callable[[Sequence[Part]], None]
    ) -> list[Rows | CaptError]:
        """Computes parts; where that fails, each by itself, to find the one that is to blame."""
        if not parts:
            return []
        starts = [part.lane.position for part in parts]
        self._context.scale_adapters(parts[0].lane.adapter_scales)
        for part in parts:
            part.lane.make_room(part.rows)
        try:
            compute(parts)
        except BaseException as error:
            for part, start in zip(parts, starts, strict=True):
                self.cut(part.lane, start)
            if not isinstance(error, CaptError):
                raise
            if len(parts) == 1:
                return [error]
            return [self._attempt([part], compute)[0] for part in parts]
        self.decoded += sum(len(part.tokens) for part in parts)
        return [self._judged(part, at) for part, at in zip(parts, starts, strict=True)]

    def _judged(self, part: Part, start: int) -> Rows | CaptError:
        """The rows of a part, if they are numbers."""
        rows = part.lane.rows
        if not part.rows or _are_numbers(rows):
            return rows
        self.cut(part.lane, start)
        return self._not_numbers()

    def _not_numbers(self) -> NumericalError:
        return NumericalError(
            f"{self.name} ({self.weights.metadata.name}) returned logits that are not numbers. "
            "Its file is damaged or the backend is broken: verify the file, or try --gpu-layers 0."
        )

    def _alone(self, parts: Sequence[Part]) -> None:
        """One long text, in batches of which the last holds all rows."""
        (part,) = parts
        tokens, lane, size = part.tokens, part.lane, self.chunk
        done, count = 0, len(tokens)
        with DeferredInterrupts() as interrupts, self._context.watched(self._stopper(interrupts)):
            while done < count:
                left = count - done
                now = left if left <= size else min(size, left - part.rows)
                rows = part.rows if now == left else 0
                self._batch.fill(
                    tokens[done : done + now], lane.position, rows, sequence=lane.number
                )
                self._context.decode()
                lane.position += now
                done += now
        if part.rows:
            lane.rows[:] = self._context.rows(part.rows)

    def _stopper(self, interrupts: DeferredInterrupts) -> Callable[[], bool]:
        asked = self.should_stop
        return lambda: interrupts.requested or (asked is not None and asked())

    def _passes(self, parts: Sequence[Part]) -> None:
        """The first token of each part, then the second of those that have one, ..."""
        for at in range(max(len(part.tokens) for part in parts)):
            here = {part.lane.number: part for part in parts if at < len(part.tokens)}
            for first, stop in self._spans(sorted(here)):
                self._pass(first, stop, at, here)

    def _spans(self, numbers: Sequence[int]) -> Sequence[tuple[int, int]]:
        """The lanes of each batch, neighbours all: llama.cpp computes no others together."""
        if not self._fills:
            return [(number, number + 1) for number in numbers]
        return spans(tuple(numbers), len(self.slots), self.sizes, self._kernels)

    def _pass(self, first: int, stop: int, at: int, here: dict[int, Part]) -> None:
        """One token of each lane from `first` on, which some of them forget at once."""
        lanes = self.slots[first:stop]
        parts = [here.get(lane.number) for lane in lanes]
        tokens = [_PAD if part is None else part.tokens[at] for part in parts]
        wanted = [part is not None and at >= len(part.tokens) - part.rows for part in parts]
        asked = list(wanted)
        if any(wanted) and self._fills:
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
                    self.cut(lane, lane.position)
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
        self.extend(first, text[:_CELLS], 0)
        for lane in self.slots[1:]:
            self.share(first, lane, _CELLS)
        classes: dict[bytes, list[int]] = {}
        for size in tried_sizes(count):
            self.sizes = (size,)
            lanes, found = self.slots[:size], [b""] * size
            for at in range(_TRIED):
                for lane in lanes:
                    lane.make_room(1)
                part = {lane.number: Part(lane, text[_CELLS:], 1) for lane in lanes}
                wanted = {n: Part(one.lane, one.tokens[: at + 1], 1) for n, one in part.items()}
                self._pass(0, size, at, wanted)
                found = [old + lane.rows.tobytes() for old, lane in zip(found, lanes, strict=True)]
            if len(set(found)) == 1:
                classes.setdefault(hashlib.sha256(found[0]).digest(), []).append(size)
            for lane in lanes:
                self.cut(lane, _CELLS)
        for lane in self.slots:
            self.cut(lane, 0)
        self.sizes = best_sizes(map(tuple, classes.values()), count, self._kernels)


def _are_numbers(rows: Rows) -> bool:
    return not rows.size or bool(np.isfinite(rows.max()) and np.isfinite(rows.min()))


# Rows that a step may need; room for so many is kept.
_FEW = 4


class Part(NamedTuple):
    """Tokens to append to a lane, and how many of the last of them want their logits."""

    lane: Lane
    tokens: Sequence[int]
    rows: int


class Lane(OnWeights):
    """See `decoding.proxy.Model`, which this is.

    Attributes:
        number: of the lane.
        position: tokens in its KV cache now.
        rows: what the last part gave; the lane's own, so that no other lane overwrites them.
        adapter_scales: see `decoding.proxy.Model`.
    """

    def __init__(self, owner: Lanes, number: int) -> None:
        """An empty lane."""
        self._owner = owner
        self.weights = owner.weights
        self.number = number
        self.position = 0
        self._room: Rows = np.empty((1, len(owner.weights.vocabulary)), np.float32)
        self.rows = self._room[:0]
        self.adapter_scales = scales_of("", owner.options, None)

    def set_adapter_scales(self, scales: Sequence[float] | None) -> None:
        """Gives its adapters other weights; see `decoding.proxy.Model.set_adapter_scales`."""
        wanted = scales_of(self._owner.name, self._owner.options, scales)
        if wanted != self.adapter_scales:
            self.rewind(0)
            self.adapter_scales = wanted

    @property
    def context_limit(self) -> int:
        """Tokens that the lane holds."""
        return self._owner.limit

    @property
    def max_rows(self) -> int:
        """The most logit rows that one `extend` can return."""
        return self._owner.options.max_rows

    @property
    def can_rewind(self) -> bool:
        """Whether the memory can forget a part."""
        return self._owner.can_rewind

    def make_room(self, count: int) -> None:
        """Makes room for so many rows. Many are needed for prompts alone, so they are not kept."""
        width = len(self.vocabulary)
        if count > _FEW:
            self.rows = np.empty((count, width), np.float32)
            return
        if len(self._room) < count:
            self._room = np.empty((_FEW, width), np.float32)
        self.rows = self._room[:count]

    @property
    def batch_floor(self) -> int:
        """See `decoding.proxy.Model.batch_floor`."""
        return self._owner.batch_floor

    def extend(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """Appends tokens, without the other lanes; see `decoding.proxy.Model.extend`."""
        self._check(tokens, rows)
        return self._owner.extend(self, tokens, rows)

    def step(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """Appends tokens one by one; see `decoding.proxy.Model.step`."""
        self._check(tokens, rows)
        (result,) = self._owner.run([Part(self, tokens, rows)])
        if isinstance(result, CaptError):
            raise result
        return result

    def peek(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """Logits behind tokens that the lane does not get; see `decoding.proxy.Model.peek`."""
        self._check(tokens, rows)
        return self._owner.peek(self, tokens, rows)

    def _check(self, tokens: Sequence[int], rows: int) -> None:
        if not 0 <= rows <= min(len(tokens), self.max_rows) or not tokens:
            raise ValueError(f"{rows} rows of {len(tokens)} tokens, at most {self.max_rows}")

    def rewind(self, length: int) -> bool:
        """Drops all tokens from position `length` on; see `decoding.proxy.Model.rewind`."""
        if not 0 <= length <= self.position:
            raise ValueError(f"cannot rewind from {self.position} to {length}")
        return length == self.position or self._owner.cut(self, length)

    def close(self) -> None:
        """Nothing: all lanes close together."""


MOST_LANES = 256  # llama.cpp keeps sequence ids in a bit set of so many

_GPU_RESERVE = 256 << 20  # left free for the backend itself
_MIB = 1 << 20


def open_lanes(models: Mapping[str, LlamaModel], count: int) -> dict[str, Lanes]:
    """Makes lanes beside the contexts that the models have.

    Args:
        models: by role.
        count: lanes of each; there are at least two.

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
    needed = {role: _lane(model) for role, model in models.items()}
    most = count
    beside = [one.beside_gpu(models[role].metadata.gpu_layers) for role, one in needed.items()]
    most = min(most, _fitting(beside, available_memory()))
    gpus = [device.free for device in library().devices() if device.is_gpu]
    if gpus:
        there = [
            replace(one, kv_cache=one.kv_cache - rest.kv_cache)
            for one, rest in zip(needed.values(), beside, strict=True)
        ]
        most = min(most, _fitting(there, sum(gpus) - _GPU_RESERVE * len(gpus)))
    if most >= count:
        return
    each = sum(one.kv_cache for one in needed.values()) / _MIB
    offer = f"{most} would fit" if most > 1 else "one at a time is all that fits"
    raise MemoryShortage(
        f"Not enough memory to answer {count} requests at once: each takes {each:,.0f} MiB; "
        f"{offer}. Ask for fewer at once, or use a smaller --ctx-size."
    )


def _lane(model: LlamaModel) -> MemoryEstimate:
    """What the first lane of a model takes; more of them take its KV cache again."""
    cells = cells_of_lane(model.weights, model.options)
    return replace(
        estimate(model.weights.header, replace(model.options, context=cells)), weights=0, adapters=0
    )


def _fitting(needed: list[MemoryEstimate], free: int) -> int:
    """How many lanes fit beside the buffers."""
    each = sum(one.kv_cache for one in needed)
    return int(max(0, free - sum(one.buffers for one in needed)) // max(each, 1))


def tried_sizes(count: int) -> list[int]:
    """The sizes of batches that are used for so many lanes, if they compute alike."""
    steps = {1, 2, *range(4, min(count, 8), 2), *range(8, count, 4), count}
    return sorted(size for size in steps if size <= count)


@lru_cache(maxsize=4096)
def spans(
    numbers: tuple[int, ...], count: int, sizes: tuple[int, ...], kernels: Kernels
) -> tuple[tuple[int, int], ...]:
    """The cheapest ranges of neighbours that hold all of some lanes.

    Args:
        numbers: of the lanes, ascending.
        count: of all lanes.
        sizes: that a range may have, none above `count`.
        kernels: which compute them.

    Returns:
        First, and one behind the last, of each range, ascending; no two overlap.
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


def best_sizes(classes: Iterable[tuple[int, ...]], count: int, kernels: Kernels) -> tuple[int, ...]:
    """Of several sets of sizes the one that serves all lanes, and one alone, at the least cost.

    Args:
        classes: one of them serves all lanes, as a size of 1 does.
        count: of all lanes.
        kernels: which compute them.
    """

    def price(sizes: tuple[int, ...]) -> float:
        ways = [tuple(range(count)), (0,)]
        ranges = [each for lanes in ways for each in spans(lanes, count, sizes, kernels)]
        return sum(kernels.cost(stop - first) for first, stop in ranges)

    return min((sizes for sizes in classes if _covers(sizes, count, kernels)), key=price)


def _covers(sizes: tuple[int, ...], count: int, kernels: Kernels) -> bool:
    """Whether every lane finds a place in some range beside those of all others."""
    held = spans(tuple(range(count)), count, sizes, kernels)
    return sum(stop - first for first, stop in held) == count
