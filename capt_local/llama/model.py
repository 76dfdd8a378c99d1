"""A model with one running sequence, through llama.cpp: extend, rewind, branch.

It knows nothing about text, templates or other models. See `decode.model.Model` for what each
method promises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Self

import numpy as np

from capt_local.errors import ContextOverflow, NumericalError
from capt_local.llama.batch import Batch, as_many_as_fit
from capt_local.llama.context import Context, Rows
from capt_local.llama.library import Closing, DeferredInterrupts
from capt_local.llama.on_weights import OnWeights
from capt_local.llama.options import LoadOptions
from capt_local.llama.weights import Progress, Weights

# So few tokens are over before anybody could want to stop them, and the asking would cost more.
_SHORT = 16


class LlamaModel(OnWeights, Closing):
    """One context on shared weights. Not for use from two threads at once.

    Args:
        weights: kept until `close`.
        options: of the context.
        name: for error messages, such as the role in the trio.

    Attributes:
        name: as given.
        weights: as given.
        should_stop: asked while long texts are computed; True ends that with `Cancelled`.
    """

    def __init__(
        self, weights: Weights, options: LoadOptions | None = None, *, name: str = "model"
    ) -> None:
        """Allocates the KV cache and the buffers."""
        self._options = options or LoadOptions()
        self.name = name
        self.weights = weights.retain()
        self.should_stop: Callable[[], bool] | None = None
        self._position = 0
        self._open = True
        try:
            self._context = Context(weights, self._options)
        except BaseException:
            weights.close()
            raise
        self._batch: Batch = self._context.batch
        self._limit = self._context.limit
        self._kernels = weights.metadata.kernels
        self._none: Rows = np.empty((0, len(weights.vocabulary)), np.float32)

    @classmethod
    def open(
        cls,
        path: Path,
        options: LoadOptions | None = None,
        progress: Progress | None = None,
        *,
        name: str = "model",
    ) -> Self:
        """Loads a file and makes one context on it; `close` frees both."""
        with Weights(path, options, progress) as weights:
            return cls(weights, options, name=name)

    @property
    def options(self) -> LoadOptions:
        """Those of its context."""
        return self._options

    @property
    def seconds(self) -> float:
        """Time in llama.cpp so far: computing, and waiting for a GPU."""
        return self._context.seconds

    @property
    def calls(self) -> int:
        """Batches computed so far; a text longer than a batch takes several."""
        return self._context.sizes.total()

    @property
    def sizes(self) -> Mapping[int, int]:
        """The same batches by their tokens, those that only filled one up among them."""
        return self._context.sizes

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided without being asked for and should be told, a sentence each."""
        return self._context.notes

    @property
    def context_limit(self) -> int:
        """Tokens that the context holds."""
        return self._limit

    @property
    def position(self) -> int:
        """Tokens in the KV cache now."""
        return self._position

    @property
    def max_rows(self) -> int:
        """The most logit rows that one `extend` can return."""
        return self._options.max_rows

    def extend(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """Appends tokens and returns the logits after the last `rows` of them.

        Whatever is raised, the running sequence is what it was before, or empty where the model's
        memory cannot forget a part (see `position`).

        Raises:
            ContextOverflow, NumericalError: see `decode.model.Model.extend`.
            Cancelled: `should_stop` said so.
            MemoryShortage, ModelError: the backend failed.
        """
        count, start = len(tokens), self._position
        if not 0 <= rows <= min(count, self.max_rows) or not count:
            raise ValueError(f"{rows} rows of {count} tokens, at most {self.max_rows}")
        if start + count > self._limit:
            raise ContextOverflow({self.name: start + count}, self._limit)
        try:
            if count == 1:
                self._batch.fill_one(tokens[0], start, rows == 1)
                self._context.decode()
            else:
                self._run_chunks(tokens, rows)
            result = self._finite(self._context.rows(rows)) if rows else self._none
            self._position = start + count
        except BaseException:
            self._forget_from(start)
            raise
        return result

    def rewind(self, length: int) -> bool:
        """Drops all tokens from position `length` on; see `decode.model.Model.rewind`."""
        if not 0 <= length <= self._position:
            raise ValueError(f"cannot rewind from {self._position} to {length}")
        return length == self._position or self._forget_from(length)

    @property
    def can_rewind(self) -> bool:
        """Whether the memory can forget a part; see `decode.model.Model`."""
        return self._context.can_rewind

    def branch(self, tails: Sequence[Sequence[int]], after: Sequence[int] | None = None) -> Rows:
        """Logits after each of several continuations; see `decode.model.Model.branch`.

        Raises:
            ContextOverflow: a tail does not fit behind the running sequence.
            NumericalError, MemoryShortage, ModelError: as for `extend`.
        """
        if not 0 < len(tails) <= self.max_rows or not all(len(tail) for tail in tails):
            raise ValueError(f"{len(tails)} tails, at most {self.max_rows}, none of them empty")
        places = list(after) if after is not None else [self._position] * len(tails)
        if not all(0 <= place <= self._position for place in places):
            raise ValueError(f"branches begin at {places}, not within {self._position} tokens")
        longest = max(len(tail) for tail in tails)
        room = min(self._limit - self._position, self._batch.size)
        if longest > room:
            raise ContextOverflow({self.name: self._position + longest}, self._position + room)
        result = np.empty((len(tails), len(self.vocabulary)), np.float32)
        done = 0
        while done < len(tails):
            group = as_many_as_fit(tails[done:], room, self._context.branches)
            stop = done + len(group)
            self._run_branches(group, places[done:stop], result[done:stop])
            done = stop
        return self._finite(result)

    def close(self) -> None:
        """Frees the context, and the weights when nothing else uses them."""
        if self._open:
            self._open = False
            self._context.close()
            self.weights.close()

    def _run_chunks(self, tokens: Sequence[int], rows: int) -> None:
        """Runs a long text in batches; the last one holds all rows."""
        start, done, count = self._position, 0, len(tokens)
        if count <= min(_SHORT, self._batch.size):
            padding = self._padding(count)
            self._batch.fill(tokens, start, rows, padding)
            self._context.decode()
            if padding:
                self._context.cut(start + count)
            return
        with DeferredInterrupts() as interrupts, self._context.watched(self._stopper(interrupts)):
            while done < count:
                left = count - done
                size = left if left <= self._batch.size else min(self._batch.size, left - rows)
                self._batch.fill(
                    tokens[done : done + size], start + done, rows if size == left else 0
                )
                self._context.decode()
                done += size

    def _padding(self, count: int) -> int:
        """Tokens that are added to a short batch, and taken back, since it is faster with them."""
        more = self._kernels.filled(count) - count
        fits = self._position + count + more <= self._limit and count + more <= self._batch.size
        return more if fits and self.can_rewind else 0

    def _stopper(self, interrupts: DeferredInterrupts) -> Callable[[], bool]:
        asked = self.should_stop
        return lambda: interrupts.requested or (asked is not None and asked())

    def _run_branches(
        self, tails: Sequence[Sequence[int]], places: Sequence[int], out: Rows
    ) -> None:
        context = self._context
        numbers = range(1, len(tails) + 1)
        try:
            for number, place in zip(numbers, places, strict=True):
                # A whole sequence also of a memory that cannot be cut.
                context.copy_sequence(number, -1 if place == self._position else place)
            ends = self._batch.fill_branches(tails, places)
            context.decode()
            for row, end in enumerate(ends):
                out[row] = context.row(end)
        finally:
            for number in numbers:
                context.drop_sequence(number)

    def _forget_from(self, length: int) -> bool:
        """Cuts the running sequence back; clears it where that cannot be done."""
        kept = self._context.cut(length)
        self._position = length if kept else 0
        return kept

    def _finite(self, rows: Rows) -> Rows:
        # NaN comes through both, and each is several times faster than looking at every number.
        if not (isfinite(rows.max()) and isfinite(rows.min())):
            files = [self.metadata.name, *(one.path.name for one in self._options.adapters)]
            raise NumericalError(
                f"{self.name} ({' with '.join(files)}) returned logits that are not numbers. "
                "A file is damaged or the backend is broken: verify the files, or try "
                "--gpu-layers 0."
            )
        return rows
