"""A llama.cpp context: its parameters, its batch, decoding, reading rows, cutting sequences."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from capt_local.errors import (
    Cancelled,
    CaptError,
    ContextOverflow,
    MemoryShortage,
    ModelError,
)
from capt_local.llama.library import Library, library
from capt_local.llama.options import LoadOptions
from capt_local.llama.resources import CONTEXT_UNIT, SEQUENCES, ThreadCount, context_size
from capt_local.llama.weights import Weights

Rows = npt.NDArray[np.float32]

_NO_SLOT, _ABORTED, _NO_MEMORY = 1, 2, -2
_RUNNING = 0  # the sequence that `extend` appends to


class Batch:
    """A `llama_batch` (`raw`) with space for `size` tokens, each in one sequence."""

    def __init__(self, api: Any, size: int) -> None:
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
        """One token of the running sequence; called at every step, so without slices."""
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

        `padding` arbitrary tokens are added after them.
        """
        count, size = len(tokens), len(tokens) + padding
        self._tokens[:count] = tokens
        self._tokens[count:size] = 0
        np.add(self._offsets[:size], position, out=self._positions[:size])
        self._sequences[:size] = sequence
        self._wanted[:size] = 0
        self._wanted[count - rows : count] = 1
        self.raw.n_tokens = size

    def fill_sequences(
        self, first: int, tokens: Sequence[int], positions: Sequence[int], rows: Sequence[bool]
    ) -> None:
        """One token of each of the sequences `first`, `first` + 1, ..."""
        count = len(tokens)
        self._tokens[:count] = tokens
        self._positions[:count] = positions
        np.add(self._offsets[:count], first, out=self._sequences[:count])
        self._wanted[:count] = rows
        self.raw.n_tokens = count


class Context:
    """A `llama_context`: KV cache and buffers on shared weights, which must stay open.

    With `slots` = 0 it has one running sequence and one for a scratch copy; else `slots` sequences,
    each with cells of its own for the whole context.

    Attributes:
        batch: the batch that the next `decode` computes.
        limit: tokens that a sequence can hold.
        chunk: largest batch for a long text, in tokens.
        open: false after `close`.
        can_rewind: whether the end of a sequence can be dropped.
        notes: messages for the user about automatic decisions.
        seconds: time in llama.cpp so far, waiting for a GPU included.
        calls: calls of `llama_decode` so far.
        adapter_scales: of its adapters, in their order.
    """

    def __init__(self, weights: Weights, options: LoadOptions, *, slots: int = 0) -> None:
        self._library: Library = library()
        api = self._library.api
        on_gpu = weights.metadata.gpu_layers > 0
        self._threads = ThreadCount(options.threads, follow=options.flash(on_gpu) == "off")
        self._name = weights.metadata.name
        self._apart = bool(slots)
        self._address = self._allocate(weights, options, slots or SEQUENCES)
        self.adapter_scales: tuple[float, ...] = ()
        try:
            self._adapters = [weights.adapter(one.path) for one in options.adapters]
            self.scale_adapters(tuple(one.scale for one in options.adapters))
        except BaseException:
            api.llama_free(self._address)
            raise
        self._bind()
        self.open = True
        self.batch = Batch(api, int(api.llama_n_batch(self._address)))
        self.chunk = min(self.batch.size, options.batch_size(on_gpu))
        self.limit = self._usable(weights, options)
        adapter_notes = (note for one in self._adapters for note in one.notes)
        self.notes = (*notes(weights, options, self.limit), *adapter_notes)
        self._width = len(weights.vocabulary)
        self.can_rewind = not is_recurrent(api, weights)
        self.seconds = 0.0
        self.calls = 0
        self._views: dict[tuple[int, int], Rows] = {}

    def _allocate(self, weights: Weights, options: LoadOptions, sequences: int) -> int:
        """The address of a new context; raises with llama.cpp's own message if it fails."""
        api, on_gpu = self._library.api, weights.metadata.gpu_layers > 0
        parameters = api.llama_context_default_params()
        parameters.n_ctx = context_size(weights.header, options)
        parameters.n_batch = options.batch_size(on_gpu)
        if self._apart:
            parameters.n_ctx = sequences * cells_per_sequence(weights, options)
            parameters.n_batch = max(parameters.n_batch, sequences)
        parameters.n_ubatch = parameters.n_batch
        parameters.n_seq_max = sequences
        # llama.cpp reserves an output row for each sequence, and aborts if there are fewer.
        parameters.n_outputs_max = max(options.max_rows, sequences)
        parameters.n_threads = parameters.n_threads_batch = self._threads.count
        parameters.flash_attn_type = _FLASH[options.flash(on_gpu)]
        parameters.type_k = parameters.type_v = GGML_TYPES[options.kv_type]
        parameters.no_perf = True
        parameters.swa_full = True  # a sliding window keeps its whole context, to be rewound
        parameters.kv_unified = not self._apart  # a copy shares the cells of what it is copied from
        self._library.forget_errors()
        address = api.llama_init_from_model(weights.handle, parameters)
        if address:
            return int(address)
        reason = self._library.last_error()
        if "alloc" in reason:
            raise MemoryShortage(f"{self._name}: {reason}. Use a smaller --ctx-size.")
        raise ModelError(f"{self._name} cannot be run: {reason or 'llama.cpp gives no reason'}.")

    def _bind(self) -> None:
        """Declares C functions with plain addresses, cheaper to call than the binding's."""
        api, address, number = self._library.api, ctypes.c_void_p, ctypes.c_int32
        function = self._library.function
        self._handle = address(self._address)
        self._memory = address(api.llama_get_memory(self._address))
        self._decode = function("llama_decode", number, address, api.llama_batch)
        self._logits = function("llama_get_logits_ith", address, address, number)
        self._remove = function(
            "llama_memory_seq_rm", ctypes.c_bool, address, number, number, number
        )
        self._copy = function("llama_memory_seq_cp", None, address, *(number,) * 4)
        self._clear = function("llama_memory_clear", None, address, ctypes.c_bool)

    def decode(self) -> None:
        """Computes the batch. After a failure part of it may be in the memory.

        Raises:
            ContextOverflow, Cancelled, MemoryShortage, ModelError: by llama.cpp's return code.
        """
        if self._threads.changed():
            count = self._threads.count
            self._library.api.llama_set_n_threads(self._address, count, count)
        started = time.perf_counter()
        code = self._decode(self._handle, self.batch.raw)
        self.seconds += time.perf_counter() - started
        self.calls += 1
        if code:
            raise self._failure(code)

    def scale_adapters(self, scales: tuple[float, ...]) -> None:
        """Sets the scales of the LoRA adapters, in this context only; keeps the KV cache."""
        if scales == self.adapter_scales:
            return
        address, count = ctypes.c_void_p, len(scales)
        put = self._library.function(
            "llama_set_adapters_lora", ctypes.c_int32, address, address, ctypes.c_size_t, address
        )
        addresses = (address * count)(*(one.address for one in self._adapters))
        put(self._address, addresses, count, (ctypes.c_float * count)(*scales))
        self.adapter_scales = scales

    def rows(self, count: int) -> Rows:
        """The last `count` rows of logits of the batch: a view, shape (count, vocabulary)."""
        started = time.perf_counter()
        address = self._logits(self._handle, -count)  # waits for a GPU
        self.seconds += time.perf_counter() - started
        key = (address, count)
        view = self._views.get(key)
        if view is None:
            if not address:
                raise ModelError(f"{self._name}: llama.cpp returned no logits.")
            memory = (ctypes.c_float * (count * self._width)).from_address(address)
            view = np.ctypeslib.as_array(memory).reshape(count, self._width)
            self._views[key] = view
        # The output buffer of a recurrent model may move; that of others is allocated in full.
        return view if self.can_rewind else view.copy()

    def copy_sequence(self, number: int, length: int = -1, source: int = _RUNNING) -> None:
        """Copies the first `length` tokens of `source` to `number`; -1 (separate cells): all."""
        self._copy(self._memory, source, number, -1, length)

    def drop_sequence(self, number: int) -> None:
        self._remove(self._memory, number, -1, -1)

    def cut(self, length: int, number: int = _RUNNING) -> bool:
        """Drops a sequence from position `length` on.

        Returns:
            False if this memory cannot be rewound: then the whole sequence has been dropped.
        """
        if length > 0 and self._remove(self._memory, number, length, -1):
            return True
        if self._apart:
            self.drop_sequence(number)
        else:
            self._clear(self._memory, True)
        return length == 0

    @contextmanager
    def abortable(self, stop: Callable[[], bool]) -> Iterator[None]:
        """Aborts decoding when `stop` returns true, within batches (on a CPU) and between them."""
        raised: list[BaseException] = []

        def on_abort_check(_data: object) -> bool:
            try:
                return stop()
            except BaseException as error:  # an exception cannot leave a C callback
                raised.append(error)
                return True

        api = self._library.api
        callback = api.ggml_abort_callback(on_abort_check)
        api.llama_set_abort_callback(self._address, callback, None)
        try:
            yield
        except Cancelled:
            if raised:
                raise raised[0] from None
            raise
        finally:
            api.llama_set_abort_callback(self._address, api.ggml_abort_callback(), None)

    def check_open(self, name: str) -> None:
        """Raises ModelError, with the model's `name`, if the context has been closed."""
        if not self.open:
            raise ModelError(f"The {name} has been closed.")

    def close(self) -> None:
        """Frees the memory."""
        self.open = False
        self._views.clear()
        self._library.api.llama_free(self._address)

    def _failure(self, code: int) -> CaptError:
        if code == _NO_SLOT:
            return ContextOverflow({self._name: self.batch.raw.n_tokens}, self.limit)
        if code == _ABORTED:
            return Cancelled("Stopped on request.")
        if code == _NO_MEMORY:
            return MemoryShortage(
                f"{self._name}: memory ran out while computing. Use a smaller --ctx-size."
            )
        return ModelError(f"{self._name}: llama.cpp could not compute a batch (code {code}).")

    def _usable(self, weights: Weights, options: LoadOptions) -> int:
        """Usable tokens: llama.cpp pads the context, possibly beyond the trained length."""
        allocated = int(self._library.api.llama_n_ctx_seq(self._address))
        if self._apart:
            allocated -= CONTEXT_UNIT
        trained = weights.metadata.context_length
        if 0 < trained < allocated and (options.context or 0) <= trained:
            return trained
        return allocated


_FLASH = {"auto": -1, "off": 0, "on": 1}
GGML_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}


def notes(weights: Weights, options: LoadOptions, limit: int) -> tuple[str, ...]:
    """Messages for the user about automatic decisions for a context, a sentence each."""
    metadata, found = weights.metadata, [*weights.notes]
    trained = metadata.context_length
    if options.context is None and limit < trained:
        found.append(
            f"{metadata.name}: the context holds {limit:,} of the {trained:,} tokens that the "
            "model was trained for; --ctx-size changes that."
        )
    if options.context is not None and 0 < trained < options.context:
        found.append(
            f"{metadata.name}: the context of {options.context:,} tokens is longer than the "
            f"{trained:,} that the model was trained for; answers may get worse."
        )
    if 0 < metadata.gpu_layers < metadata.layers:
        found.append(
            f"{metadata.name}: {metadata.gpu_layers} of {metadata.layers} layers are on the GPU."
        )
    return tuple(found)


def is_recurrent(api: Any, weights: Weights) -> bool:
    """Whether the model has a recurrent state (also hybrid), which cannot be rewound."""
    handle = weights.handle
    return bool(api.llama_model_is_recurrent(handle) or api.llama_model_is_hybrid(handle))


def cells_per_sequence(weights: Weights, options: LoadOptions) -> int:
    """KV cells of a sequence with cells of its own: the context, and space for padding tokens."""
    size = context_size(weights.header, options)
    return -(-size // CONTEXT_UNIT) * CONTEXT_UNIT + CONTEXT_UNIT
