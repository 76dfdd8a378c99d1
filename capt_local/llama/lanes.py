"""Several texts at once on one context: each is a sequence with memory of its own, a lane.

Short parts of many texts go through the model together; long ones (prompts) by themselves, in
batches that depend on nothing but the text. What a text gives is the same bit for bit whatever runs
beside it: a backend computes a token alike at every place of batches of some sizes. Which these are
is tried out, and only these are used: a batch that would have another size is filled up with tokens
for neighbours, who forget them at once. Where there are none, each lane has batches of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from capt_local.errors import CaptError, ContextOverflow, NumericalError
from capt_local.llama.context import Context, Rows
from capt_local.llama.lane import Lane, Part
from capt_local.llama.library import DeferredInterrupts
from capt_local.llama.options import LoadOptions
from capt_local.llama.spans import best_sizes, spans, tried_sizes
from capt_local.llama.weights import Weights

# Tokens of a text that still go along with those of others; beyond, a batch of its own pays.
MOST_TOGETHER = 4
_TRIED = (1, 2)  # tokens that any model has
_PAD = 0  # any token will do; nobody reads what it gives


class Lanes:
    """One context on shared weights, with several sequences. Not for use from two threads.

    Args:
        weights: kept until `close`.
        options: of the context; each lane holds as many tokens as a context of its own would.
        count: lanes that are wanted; there are at least two.
        name: for error messages, such as the role in the trio.

    Attributes:
        name: as given.
        weights: as given.
        lanes: the models, one a lane.
        most_together: so many tokens of a lane go along with those of others.
        decoded: tokens that texts have had decoded so far.
        sizes: of batches, which make no difference to any bit.
        should_stop: asked while long texts are computed; True ends that with `Cancelled`.
    """

    def __init__(
        self, weights: Weights, options: LoadOptions, count: int, *, name: str = "model"
    ) -> None:
        """Allocates, and tries out how the backend computes."""
        self.name = name
        self.weights = weights.retain()
        self.options = options
        self.should_stop: Callable[[], bool] | None = None
        self.most_together = MOST_TOGETHER
        self.decoded = 0
        self.sizes: tuple[int, ...] = ()
        self._open = True
        count = max(count, 2)
        try:
            self._context = Context(weights, options, lanes=count)
        except BaseException:
            weights.close()
            raise
        self._batch = self._context.batch
        self.lanes = tuple(Lane(self, number) for number in range(count))
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
        """Appends tokens to lanes.

        Args:
            parts: lane, tokens, and after how many of the last of them logits are wanted; at most
                one for each lane.

        Returns:
            For each part its rows, shape (rows, vocabulary), which the next part of the same lane
            overwrites, or what went wrong with it: then its lane is what it was before, or empty
            where the memory cannot forget a part. The others are not concerned.
        """
        done: dict[int, Rows | CaptError] = {}
        together = []
        for part in (wanted := [Part(*part) for part in parts]):
            if part.lane.position + len(part.tokens) > self.limit:
                count = part.lane.position + len(part.tokens)
                done[part.lane.number] = ContextOverflow({self.name: count}, self.limit)
            elif len(part.tokens) > MOST_TOGETHER:
                done[part.lane.number] = self._attempt([part], self._alone)[0]
            else:
                together.append(part)
        for part, result in zip(together, self._attempt(together, self._passes), strict=True):
            done[part.lane.number] = result
        return [done[part.lane.number] for part in wanted]

    def share(self, source: Lane, target: Lane, length: int) -> bool:
        """Gives a lane the first tokens of another; what it held is dropped.

        Returns:
            False where the memory cannot do that: nothing has changed.
        """
        if not self.can_rewind or source is target or not 0 < length <= source.position:
            return False
        self._context.copy_sequence(target.number, source=source.number)
        target.position = source.position
        return self.cut(target, length)

    def cut(self, lane: Lane, length: int) -> bool:
        """Drops the end of a lane; see `decode.model.Model.rewind`."""
        kept = self._context.cut(length, lane.number)
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
        if not part.rows or (np.isfinite(rows.max()) and np.isfinite(rows.min())):
            return rows
        self.cut(part.lane, start)
        return NumericalError(
            f"{self.name} ({self.weights.metadata.name}) returned logits that are not numbers. "
            "Its file is damaged or the backend is broken: verify the file, or try --gpu-layers 0."
        )

    def _alone(self, parts: Sequence[Part]) -> None:
        """One long text, in batches of which the last holds all rows."""
        (part,) = parts
        tokens, lane, size = part.tokens, part.lane, self.options.batch_size(self._on_gpu)
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

    @property
    def _on_gpu(self) -> bool:
        return self.weights.metadata.gpu_layers > 0

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
        return spans(tuple(numbers), len(self.lanes), self.sizes, self._kernels)

    def _pass(self, first: int, stop: int, at: int, here: dict[int, Part]) -> None:
        """One token of each lane from `first` on, which some of them forget at once."""
        lanes = self.lanes[first:stop]
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
        count = len(self.lanes)
        classes: dict[bytes, list[int]] = {}
        for size in tried_sizes(count):
            self.sizes = (size,)
            lanes = self.lanes[:size]
            for lane in lanes:
                lane.make_room(1)
            for at in range(len(_TRIED)):
                self._pass(0, size, at, {lane.number: Part(lane, _TRIED, 1) for lane in lanes})
            rows = {lane.rows.tobytes() for lane in lanes}
            if len(rows) == 1:
                classes.setdefault(rows.pop(), []).append(size)
            for lane in lanes:
                self.cut(lane, 0)
        self.sizes = best_sizes(map(tuple, classes.values()), count, self._kernels)
