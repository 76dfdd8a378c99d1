"""Batched decoding: several sequences on one context, each with KV cells of its own.

Single tokens of many sequences are decoded together; long texts (prompts) in batches of their own,
which depend on the text alone. The logits of a sequence are bit for bit the same whatever else is
decoded: for some batch sizes a backend computes a token identically at every index of the batch.
These sizes are found by trial, and only they are used: a smaller batch is padded with tokens for
neighbouring sequences, removed at once. Without such sizes, each sequence has its own batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from capt_local.errors import CaptError, MemoryShortage
from capt_local.llama.context import Context, Rows, cells_per_sequence, is_recurrent
from capt_local.llama.devices import Kernels
from capt_local.llama.library import library
from capt_local.llama.model import LlamaModel, RunningSequence, are_finite
from capt_local.llama.options import LoadOptions
from capt_local.llama.resources import MemoryEstimate, available_memory, estimate
from capt_local.llama.weights import Weights

# Most tokens of a sequence to decode together with others'; more are cheaper in their own batch.
MOST_TOGETHER = 4
_CELLS, _TRIED = 32, 4  # batch sizes are tried on _TRIED tokens after a text of _CELLS tokens
_PAD = 0  # any token: its logits are not used
_FEW = 4  # rows that a step may need; memory for so many is kept


class Part(NamedTuple):
    """Tokens to append to a sequence, and the number of last ones whose logits are needed."""

    slot: SequenceSlot
    tokens: Sequence[int]
    rows: int


class SequenceSlot(RunningSequence):
    """One of several sequences on a context.

    Attributes:
        rows: logits of its last part, in memory of its own that no other sequence overwrites.
    """

    _owner: BatchedContext

    def __init__(
        self, owner: BatchedContext, context: Context, number: int, scratch: int | None
    ) -> None:
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
        """Allocates `rows`. Large arrays are needed for prompts only, so they are not kept."""
        width = len(self.vocabulary)
        if count > _FEW:
            self.rows = np.empty((count, width), np.float32)
            return
        if len(self._kept) < count:
            self._kept = np.empty((_FEW, width), np.float32)
        self.rows = self._kept[:count]

    def close(self) -> None:
        """Does nothing: all sequences are closed with their context."""


class BatchedContext:
    """One context on shared weights, with several sequences. Not for use from two threads.

    Args:
        weights: kept until `close`.
        options: of the context; each lane holds as many tokens as a context of its own would.
        count: number of sequences; at least two are made.
        name: for error messages, such as the role in the trio.
        batch_floor: of the model that has one running sequence.

    Attributes:
        slots: the sequences; each is a `Model`.
        max_tokens_together: most tokens of a sequence that are batched with those of others.
        chunk: largest batch for a long text, in tokens.
        decoded: tokens decoded so far, without padding.
        sizes: batch sizes that give bit-identical logits.
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
            # A memory that cannot be rewound needs a sequence for copies (`peek`), and its batches
            # cannot be padded.
            self.can_rewind = not is_recurrent(library().api, weights)
            scratch = None if self.can_rewind else count
            self._context = Context(weights, options, slots=count + (scratch is not None))
        except BaseException:
            weights.close()
            raise
        self.limit = self._context.limit
        self._batch = self._context.batch
        self.chunk = self._context.chunk
        self.slots = [SequenceSlot(self, self._context, number, scratch) for number in range(count)]
        self._kernels = weights.metadata.kernels
        try:
            if self.can_rewind:
                self._choose_sizes()
        except BaseException:
            self.close()
            raise

    def run(
        self, parts: Sequence[tuple[SequenceSlot, Sequence[int], int]]
    ) -> list[Rows | CaptError]:
        """Appends tokens to several sequences, one token of each per batch.

        Args:
            parts: sequence, tokens, and the number of last tokens whose logits are needed; at most
                one part per sequence.

        Returns:
            For each part its rows, shape (rows, vocabulary), overwritten by the next part of the
            same sequence; or its error, after which its sequence is as before, or empty if the
            memory cannot be rewound. An error does not affect the other parts.
        """
        done: dict[int, Rows | CaptError] = {}
        # Adapter scales belong to the context: sequences with other scales get their own batches.
        groups: dict[tuple[float, ...], list[Part]] = {}
        for part in (wanted := [Part(*part) for part in parts]):
            if error := part.slot.overflow(len(part.tokens)):
                done[part.slot.number] = error
            else:
                groups.setdefault(part.slot.adapter_scales, []).append(part)
        for scales, together in groups.items():
            self._context.scale_adapters(scales)
            for part, result in zip(together, self._attempt(together), strict=True):
                done[part.slot.number] = result
        return [done[part.slot.number] for part in wanted]

    def share(self, source: SequenceSlot, target: SequenceSlot, length: int) -> bool:
        """Replaces the contents of `target` by the first `length` tokens of `source`.

        Returns:
            False if the memory cannot do that; then nothing has changed.
        """
        if not self.can_rewind or source is target or not 0 < length <= source.position:
            return False
        if source.adapter_scales != target.adapter_scales:
            return False
        self._context.copy_sequence(target.number, source=source.number)
        target.position = source.position
        return target.cut(length)

    def pack(self, used: Iterable[SequenceSlot]) -> None:
        """Moves these sequences to the lowest numbers, if that makes their batches cheaper.

        The sequences that had these numbers are cleared.
        """
        if not self.can_rewind:  # then each has batches of its own
            return
        numbers = sorted(slot.number for slot in used)
        first = range(len(numbers))
        before, after = (
            cost_of(tuple(each), len(self.slots), self.sizes, self._kernels)
            for each in (numbers, first)
        )
        if after >= before:
            return
        holes = sorted(set(first).difference(numbers))
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
        """Decodes parts together; if that fails, one by one, to find the part that fails."""
        starts = [part.slot.position for part in parts]
        for part in parts:
            part.slot.make_room(part.rows)
        try:
            for at in range(max(len(part.tokens) for part in parts)):
                # The first token of each part, then the second tokens, ...
                here = {part.slot.number: part for part in parts if at < len(part.tokens)}
                for first, stop in self._spans(sorted(here)):
                    self._pass(first, stop, at, here)
        except BaseException as error:
            for part, start in zip(parts, starts, strict=True):
                part.slot.cut(start)
            if not isinstance(error, CaptError):
                raise
            if len(parts) == 1:
                return [error]
            return [self._attempt([part])[0] for part in parts]
        self.decoded += sum(len(part.tokens) for part in parts)
        found: list[Rows | CaptError] = []
        for part, start in zip(parts, starts, strict=True):
            if part.rows and not are_finite(part.slot.rows):
                part.slot.cut(start)
                found.append(part.slot.not_finite_error())
            else:
                found.append(part.slot.rows)
        return found

    def _spans(self, numbers: Sequence[int]) -> Sequence[tuple[int, int]]:
        """The batches as ranges of sequences: llama.cpp needs consecutive ones in a batch."""
        if not self.can_rewind:
            return [(number, number + 1) for number in numbers]
        return spans(tuple(numbers), len(self.slots), self.sizes, self._kernels)

    def _pass(self, first: int, stop: int, at: int, here: dict[int, Part]) -> None:
        """Decodes token `at` of each part in a batch of sequences [first, stop), and padding."""
        slots = self.slots[first:stop]
        parts = [here.get(slot.number) for slot in slots]
        tokens = [_PAD if part is None else part.tokens[at] for part in parts]
        wanted = [part is not None and at >= len(part.tokens) - part.rows for part in parts]
        requested = list(wanted)
        if any(wanted) and self.can_rewind:
            # The last layer is computed for the output rows only, so their number is padded too.
            others = [place for place, row in enumerate(wanted) if not row]
            size = next(size for size in (*self.sizes, len(slots)) if size >= sum(wanted))
            for place in others[: size - sum(wanted)]:
                requested[place] = True
        self._batch.fill_sequences(first, tokens, [slot.position for slot in slots], requested)
        try:
            self._context.decode()
            for slot, part in zip(slots, parts, strict=True):
                slot.position += part is not None
        finally:
            for slot, part in zip(slots, parts, strict=True):
                if part is None:
                    slot.cut(slot.position)
        if any(wanted):
            places = np.cumsum(requested) - 1
            rows = self._context.rows(sum(requested))
            for part, own, place in zip(parts, wanted, places, strict=True):
                if own and part is not None:
                    part.slot.rows[at - len(part.tokens) + part.rows] = rows[place]

    def _choose_sizes(self) -> None:
        """Finds the batch sizes that give identical bits at every index of the batch."""
        count = len(self.slots)
        if self.limit < _CELLS + _TRIED:
            self.sizes = (1,)
            return
        text = [(7 + 31 * n * n) % len(self.weights.vocabulary) for n in range(_CELLS + _TRIED)]
        first = self.slots[0]
        self.sizes = (1,)
        first.extend(text[:_CELLS], 0)
        for slot in self.slots[1:]:
            self.share(first, slot, _CELLS)
        classes: dict[bytes, list[int]] = {}
        steps = {1, 2, *range(4, min(count, 8), 2), *range(8, count, 4), count}
        for size in sorted(size for size in steps if size <= count):
            self.sizes = (size,)
            slots, found = self.slots[:size], [b""] * size
            for at in range(_TRIED):
                for slot in slots:
                    slot.make_room(1)
                tokens = text[_CELLS : _CELLS + at + 1]
                self._pass(0, size, at, {slot.number: Part(slot, tokens, 1) for slot in slots})
                found = [old + slot.rows.tobytes() for old, slot in zip(found, slots, strict=True)]
            if len(set(found)) == 1:
                classes.setdefault(hashlib.sha256(found[0]).digest(), []).append(size)
            for slot in slots:
                slot.cut(_CELLS)
        for slot in self.slots:
            slot.cut(0)
        self.sizes = best_sizes(map(tuple, classes.values()), count, self._kernels)


MAX_SEQUENCES = 256  # llama.cpp keeps sequence ids in a bit set of so many

_GPU_RESERVE = 256 << 20  # left free for the backend itself
_MIB = 1 << 20


def open_batched(models: Mapping[str, LlamaModel], count: int) -> dict[str, BatchedContext]:
    """Makes for each model a second context with `count` sequences (at least two), by role.

    Raises:
        MemoryShortage: so many do not fit; the message says how many would.
    """
    count = max(count, 2)
    _check_fits(models, count)
    made: dict[str, BatchedContext] = {}
    try:
        for role, model in models.items():
            made[role] = BatchedContext(
                model.weights, model.options, count, name=role, batch_floor=model.batch_floor
            )
    except BaseException:
        for context in made.values():
            context.close()
        raise
    return made


def _check_fits(models: Mapping[str, LlamaModel], count: int) -> None:
    needed = {role: sequence_memory(model) for role, model in models.items()}
    beside = [
        one.without_gpu_layers(models[role].metadata.gpu_layers) for role, one in needed.items()
    ]
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


def sequence_memory(model: LlamaModel) -> MemoryEstimate:
    """Memory of the first sequence; each further one takes its KV cache again."""
    cells = cells_per_sequence(model.weights, model.options)
    found = estimate(model.weights.header, replace(model.options, context=cells))
    return replace(found, weights=0, movable=(0,) * found.layers, adapters=0)


def _fitting(needed: list[MemoryEstimate], free: int) -> int:
    """Number of sequences that fit beside the buffers."""
    each = sum(one.kv_cache for one in needed)
    return int(max(0, free - sum(one.buffers for one in needed)) // max(each, 1))


@lru_cache(maxsize=4096)
def spans(
    numbers: tuple[int, ...], count: int, sizes: tuple[int, ...], kernels: Kernels
) -> tuple[tuple[int, int], ...]:
    """The cheapest ranges (first, one behind the last) of neighbours that hold some lanes.

    `numbers`: of these sequences, ascending, of `count` in all; `sizes`: allowed sizes of a range.
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
    """The cost of the batches for these sequences, in batches of one token; see `spans`."""
    return sum(kernels.cost(stop - at) for at, stop in spans(numbers, count, sizes, kernels))


def best_sizes(classes: Iterable[tuple[int, ...]], count: int, kernels: Kernels) -> tuple[int, ...]:
    """The set of sizes with the least total cost for all sequences and for a single one."""

    def batch_cost(sizes: tuple[int, ...]) -> float:
        return sum(cost_of(slots, count, sizes, kernels) for slots in (tuple(range(count)), (0,)))

    def covers(sizes: tuple[int, ...]) -> bool:
        held = spans(tuple(range(count)), count, sizes, kernels)
        return sum(stop - first for first, stop in held) == count

    return min(filter(covers, classes), key=batch_cost)
