"""A model with one running sequence, through llama.cpp: extend, step, peek, rewind.

It knows nothing about text, templates or other models. The interface is `decoding.proxy.Model`. The
encoder of a scorer, in llama.cpp's embedding mode, is at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from capt_local.errors import (
    ContextOverflow,
    MemoryShortage,
    ModelError,
    NumericalError,
)
from capt_local.llama.context import Batch, Context, Rows
from capt_local.llama.gguf_header import Header, read_header
from capt_local.llama.library import Closing, DeferredInterrupts, library
from capt_local.llama.options import LoadOptions, scales_of
from capt_local.llama.resources import available_memory
from capt_local.llama.weights import Metadata, Progress, Weights
from capt_local.strict_json import Stamp
from capt_local.tokenization import Vocabulary

# Batches up to this size are too short to be worth an abort callback.
_SHORT = 16
_SCRATCH = 1  # the sequence of `peek`
# `_find_batch_floor` compares the bits of batches after so many tokens of text; batches of up to
# _MOST_TRIED tokens; the second comparison only if the first took less than _LONGEST_PROBE seconds.
_PROBED_CELLS = (24, 300)
_MOST_TRIED = 16
_LONGEST_PROBE = 1.0
_SMALL = 300 << 20  # bytes of weights up to which both comparisons are always made
# Formats of which a batch of two costs little more than one token.
_CHEAP_PAIRS = ("all F32", "F16", "BF16", "Q8_0")


class ContextOwner(Protocol):
    """The owner of a context, with everything that its sequences share."""

    name: str
    weights: Weights
    options: LoadOptions
    batch_floor: int
    should_stop: Callable[[], bool] | None


class RunningSequence:
    """One sequence of tokens in the KV cache of a context; see `decoding.proxy.Model`."""

    def __init__(
        self, owner: ContextOwner, context: Context, number: int, scratch: int | None
    ) -> None:
        self.weights = owner.weights
        self.metadata: Metadata = owner.weights.metadata
        self.size = self.metadata.size
        self.context_limit = context.limit
        self.max_rows = owner.options.max_rows
        self.can_rewind = context.can_rewind
        self.number = number
        self.position = 0
        self.adapter_scales = scales_of(owner.name, owner.options, None)
        self._owner = owner
        self._context = context
        self._batch = context.batch
        self._scratch = scratch  # the sequence for `peek`; None if the memory can rewind
        self._none: Rows = np.empty((0, len(self.vocabulary)), np.float32)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.weights.vocabulary  # gets the turn ends of the template after loading

    def batch_cost(self, count: int) -> float:
        kernels = self.metadata.kernels
        return kernels.cost(kernels.padded_size(count))

    def tokenize(self, text: bytes, *, special: bool) -> list[int]:
        return self.weights.tokenize(text, special=special)

    def extend(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """Appends tokens and returns the logits after the last `rows` of them.

        After an exception the running sequence is as before, or empty if the memory cannot be
        rewound (see `position`).

        Raises:
            ContextOverflow: the tokens do not fit.
            NumericalError: a logit is NaN or infinite.
            Cancelled: `should_stop` returned true.
            MemoryShortage, ModelError: the backend failed.
        """
        count, start = len(tokens), self.position
        self._check(count, rows)
        try:
            self._run_chunks(tokens, rows)
            result = self._finite(self._context.rows(rows)) if rows else self._none
            self.position = start + count
        except BaseException:
            self.cut(start)
            raise
        return result

    def peek(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """As `extend` on a copy of the running sequence, which does not change; returns a copy.

        Used instead of rewinding by memories that cannot (recurrent, sliding window).
        """
        count, start = len(tokens), self.position
        self._check(count, rows)
        if self._scratch is None:
            raise ValueError("a memory that can be rewound is not copied")
        result = np.empty((rows, len(self.vocabulary)), np.float32)
        self._context.copy_sequence(self._scratch, source=self.number)
        try:
            for at, token in enumerate(tokens):
                wanted = at >= count - rows
                self._batch.fill((token,), start + at, int(wanted), sequence=self._scratch)
                self._context.decode()
                if wanted:
                    result[at - count + rows] = self._finite(self._context.rows(1))[0]
        finally:
            self._context.drop_sequence(self._scratch)
        return result

    def rewind(self, length: int) -> bool:
        self._context.check_open(self._owner.name)
        if not 0 <= length <= self.position:
            raise ValueError(f"cannot rewind from {self.position} to {length}")
        return length == self.position or self.cut(length)

    def cut(self, length: int) -> bool:
        """Truncates the sequence to `length` tokens; clears it and returns False if it cannot."""
        try:
            kept = self._context.cut(length, self.number)
        except BaseException:  # interrupted: the contents are unknown
            self.position = 0
            self._context.cut(0, self.number)
            raise
        self.position = length if kept else 0
        return kept

    def set_adapter_scales(self, scales: Sequence[float] | None) -> None:
        wanted = scales_of(self._owner.name, self._owner.options, scales)
        if wanted != self.adapter_scales:
            self.rewind(0)
            self.adapter_scales = wanted
            self._context.scale_adapters(wanted)

    def overflow(self, count: int) -> ContextOverflow | None:
        """A ContextOverflow if `count` more tokens do not fit, else None."""
        size = self.position + count
        if size <= self._context.limit:
            return None
        return ContextOverflow({self._owner.name: size}, self._context.limit)

    def _check(self, count: int, rows: int) -> None:
        self._context.check_open(self._owner.name)
        if not 0 <= rows <= min(count, self.max_rows) or not count:
            raise ValueError(f"{rows} rows of {count} tokens, at most {self.max_rows}")
        if error := self.overflow(count):
            raise error

    def _run_chunks(self, tokens: Sequence[int], rows: int) -> None:
        """Decodes tokens in batches; all rows are in the last one."""
        start, done, count = self.position, 0, len(tokens)
        most = self._context.chunk
        if count <= min(_SHORT, most):
            self._batch.fill(tokens, start, rows, sequence=self.number)
            self._context.decode()
            return
        should_stop = self._owner.should_stop
        with (
            DeferredInterrupts() as interrupts,
            self._context.abortable(
                lambda: interrupts.requested or bool(should_stop and should_stop())
            ),
        ):
            while done < count:
                left = count - done
                size = left if left <= most else min(most, left - rows)
                now = tokens[done : done + size]
                wanted = rows if size == left else 0
                self._batch.fill(now, start + done, wanted, sequence=self.number)
                self._context.decode()
                done += size

    def _finite(self, rows: Rows) -> Rows:
        if not are_finite(rows):
            raise self.not_finite_error()
        return rows

    def not_finite_error(self) -> NumericalError:
        """The error of logits that are NaN or infinite."""
        files = [self.metadata.name, *(one.path.name for one in self._owner.options.adapters)]
        return NumericalError(
            f"{self._owner.name} ({' with '.join(files)}) returned logits that are not numbers. "
            "A file is damaged or the backend is broken: verify the files, or try --gpu-layers 0."
        )


def are_finite(rows: Rows) -> bool:
    """Whether no row holds NaN or an infinity."""
    # Both propagate NaN, and are several times faster than `np.isfinite` on every number.
    return not rows.size or (isfinite(rows.max()) and isfinite(rows.min()))


class LlamaModel(RunningSequence, Closing):
    """One context on shared weights. Not for use from two threads at once.

    Args:
        weights: kept until `close`.
        options: of the context.
        name: for error messages, such as the role in the trio.
        prefers_batches: whether it decodes several tokens at a time more often than one.

    Attributes:
        should_stop: called while long texts are computed; True ends that with `Cancelled`.
        batch_floor: see `decoding.proxy.Model`.
    """

    def __init__(
        self,
        weights: Weights,
        options: LoadOptions | None = None,
        *,
        name: str = "model",
        prefers_batches: bool = False,
    ) -> None:
        self.options = options or LoadOptions()
        self.name = name
        self.weights = weights.retain()
        self.should_stop: Callable[[], bool] | None = None
        self.batch_floor = 1
        try:
            context = Context(weights, self.options)
        except BaseException:
            weights.close()
            raise
        super().__init__(self, context, 0, _SCRATCH)
        self._prefers_batches = prefers_batches
        if context.can_rewind and context.limit > 3 * _MOST_TRIED:
            try:
                self.batch_floor = self._find_batch_floor()
            except BaseException:
                self.close()
                raise

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
    def seconds(self) -> float:
        """Seconds in llama.cpp so far: computing, and waiting for a GPU."""
        return self._context.seconds

    @property
    def calls(self) -> int:
        """Calls of `llama_decode` so far."""
        return self._context.calls

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages for the user about automatic decisions, a sentence each."""
        return self._context.notes

    def step(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """As `extend`, bit for bit as if the tokens were decoded one by one; same errors."""
        floor, count, start = self.batch_floor, len(tokens), self.position
        if floor == 0 and count > 1:
            return self.extend(tokens, rows)
        self._check(count, rows)
        size = 1 if floor < 2 else _MOST_TRIED
        result = self._none
        try:
            for at in range(0, count, size):
                now = tokens[at : at + size]
                wanted = max(0, min(len(now), at + len(now) - (count - rows)))
                self._run_step(now, start + at, wanted, max(floor, len(now)))
                if not wanted:
                    continue
                found = self._finite(self._context.rows(wanted))
                if wanted == rows:
                    result = found
                    continue
                if not len(result):
                    result = np.empty((rows, len(self.vocabulary)), np.float32)
                place = at + len(now) - wanted - (count - rows)
                result[place : place + wanted] = found
            self.position = start + count
        except BaseException:
            self.cut(start)
            raise
        return result

    def _run_step(self, tokens: Sequence[int], start: int, rows: int, size: int) -> None:
        """Decodes a batch padded to `size` tokens; the padding is removed at once."""
        if size == 1:
            self._batch.fill_one(tokens[0], start, rows == 1)
            self._context.decode()
            return
        padding = min(size - len(tokens), self._context.limit - start - len(tokens))
        self._batch.fill(tokens, start, rows, padding)
        self._context.decode()
        if padding:
            self._context.cut(start + len(tokens))

    def close(self) -> None:
        """Frees the context, and the weights when nothing else uses them."""
        if self._context.open:
            self._context.close()
            self.weights.close()

    def _find_batch_floor(self) -> int:
        """Finds the batch sizes with which `step` is deterministic: `batch_floor`.

        llama.cpp computes a batch of one token with other kernels than larger ones, and the last
        bits can differ: in attention without flash attention, if the build has llamafile's matrix
        product; with flash attention, in long texts that are split among threads; in weights
        repacked for batches. Where values are rounded to 8 bits few rows show a difference, so the
        build flags are checked too. On a CPU a batch of two costs up to twice one token, so the
        target decodes one by one; proxies are padded to two tokens where that is cheap.
        """
        on_gpu = self.metadata.gpu_layers > 0
        cheap = self.metadata.file_type.startswith(_CHEAP_PAIRS)
        pairs = [2] if cheap and self._prefers_batches else []
        built_with = library().build_info().system_info
        if on_gpu:
            floors = [0, 2, 4, 8]
        elif self.options.flash(on_gpu) != "off" or "LLAMAFILE = 1" in built_with:
            floors = pairs
        else:
            floors = [0, *pairs]
        started = time.perf_counter()
        most = self._context.limit - 2 * _MOST_TRIED
        for cells in sorted({min(cells, most) for cells in _PROBED_CELLS}):
            floors = [floor for floor in floors if self._same_bits(cells, floor)]
            if not floors:
                return 1
            if time.perf_counter() - started > _LONGEST_PROBE and self.metadata.size > _SMALL:
                return 1 if floors[0] == 0 else floors[0]  # 0 and 1 have the same bits
        return floors[0]

    def _same_bits(self, cells: int, floor: int) -> bool:
        """Whether batches of different sizes give identical rows after `cells` tokens of text."""
        width = len(self.vocabulary)
        text = [(7 + 31 * n * n) % width for n in range(cells + _MOST_TRIED)]
        expected: Rows | None = None
        try:
            self._run_chunks(text[:cells], 0)
            for size in (1, 2, 3, 5, 8, _MOST_TRIED):
                if size > self.max_rows:
                    break
                found = np.empty((_MOST_TRIED, width), np.float32)
                for at in range(0, _MOST_TRIED, size):
                    now = text[cells + at : cells + min(at + size, _MOST_TRIED)]
                    self._batch.fill(now, cells + at, len(now), max(0, floor - len(now)))
                    self._context.decode()
                    found[at : at + len(now)] = self._context.rows(len(now))
                    self._context.cut(cells + at + len(now))
                self._context.cut(cells)
                if expected is not None and not np.array_equal(expected, found):
                    return False
                expected = found
            return True
        finally:
            self.cut(0)


# --- an encoder -----------------------------------------------------------------------------------

_POOLINGS = (1, 2, 3)  # mean, first token (CLS), last token: one vector per text
_LARGEST = 2 << 30  # bytes of a file; an encoder of BERT's size has 0.4 GB in F32
_LONGEST = 1 << 13  # tokens; llama.cpp encodes a text in one batch


class Encoder(Closing):
    """A loaded encoder; `stamp` identifies its file if that was checked. Not for two threads.

    Attributes:
        name: of the file.
        width: dimension of the pooled vector.
        limit: largest number of tokens, [CLS] and [SEP] included.

    Raises:
        ModelError: the file is missing, damaged, no encoder, or one without pooling.
        MemoryShortage: it does not fit into memory.
    """

    def __init__(self, path: Path, threads: int = 1, stamp: Stamp | None = None) -> None:
        self.name = path.name
        self._check(read_header(path, encoder=True), min(_LARGEST, available_memory()))
        self._weights = Weights(
            path,
            LoadOptions(gpu_layers=0, check_tensors=True),
            layers={},
            stamps={} if stamp is None else {path: stamp},
            encoder=True,
        )
        self.width = self._weights.header.number("embedding_length")
        self.limit = min(self._weights.header.number("context_length"), _LONGEST)
        self._context: Any = None
        try:
            self._check(self._weights.header, _LARGEST)  # of the file that was loaded
            self._open_context(threads)
        except BaseException:
            self.close()
            raise

    def _check(self, header: Header, largest: int) -> None:
        if header.number("pooling_type") not in _POOLINGS:
            raise ModelError(
                f"{self.name} does not say how it makes one vector of a text (pooling_type), so it "
                "cannot score answers. Use an encoder that was converted for embeddings."
            )
        if header.file_size > largest:
            raise MemoryShortage(f"{self.name}: the scorer does not fit into memory.")

    def _open_context(self, threads: int) -> None:
        api = self._api = library().api
        parameters = api.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = self.limit
        parameters.n_seq_max = 1
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.embeddings = True
        parameters.no_perf = True
        library().forget_errors()
        self._context = api.llama_init_from_model(self._weights.handle, parameters)
        if not self._context:
            reason = library().last_error() or "llama.cpp gives no reason"
            raise ModelError(f"{self.name} cannot be run as an encoder: {reason}.")
        vocab = api.llama_model_get_vocab(self._weights.handle)
        self._first, self._last = api.llama_vocab_bos(vocab), api.llama_vocab_sep(vocab)
        if self._first < 0 or self._last < 0:
            raise ModelError(f"{self.name} has no tokens that stand around a text.")
        self._batch = Batch(api, self.limit)

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, without [CLS] and [SEP]."""
        return self._weights.tokenize(text.encode("utf-8", "replace"), special=False)

    def vector(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The pooled vector, shape (width,), of at most `limit` - 2 tokens between [CLS] and [SEP].

        Raises:
            NumericalError: it holds NaN or infinities.
        """
        api = self._api
        whole = [self._first, *tokens, self._last]
        self._batch.fill(whole, 0, len(whole))
        if code := api.llama_encode(self._context, self._batch.raw):
            raise ModelError(f"{self.name}: llama.cpp could not compute a text (code {code}).")
        values = api.llama_get_embeddings_seq(self._context, 0)
        found: npt.NDArray[np.float32] = np.ctypeslib.as_array(values, (self.width,)).copy()
        if not np.isfinite(found).all():
            raise NumericalError(f"{self.name} gives numbers that are not finite.")
        return found

    def close(self) -> None:
        if self._context:
            self._api.llama_free(self._context)
        self._context = None
        self._weights.close()
