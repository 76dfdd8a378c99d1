"""A llama.cpp context: parameters, adapters, decoding a batch, reading rows, cutting sequences."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from capt_local.engine.adapters import free_adapters, set_adapters
from capt_local.engine.batch import Batch
from capt_local.engine.library import Library, library
from capt_local.engine.memory import context_size, sequence_count
from capt_local.engine.options import LoadOptions
from capt_local.engine.weights import Weights
from capt_local.errors import (
    Cancelled,
    CaptError,
    ContextOverflow,
    MemoryShortage,
    ModelError,
)

Rows = npt.NDArray[np.float32]

_FLASH = {"auto": -1, "off": 0, "on": 1}
_GGML_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
_NO_SLOT, _ABORTED, _NO_MEMORY = 1, 2, -2
_RUNNING = 0  # the sequence that `extend` appends to; branches are 1, 2, ...


def physical_cores() -> int:
    """Physical cores that this process may use; threads beyond them only wait for each other."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(usable or 1, psutil.cpu_count(logical=False) or usable or 1))


class Context:
    """The KV cache and buffers of one model, and the calls that a step needs.

    Args:
        weights: which must stay open as long as this.
        options: of the context.

    Attributes:
        batch: what the next `decode` computes.
        limit: tokens that fit.
        branches: sequences beside the running one that one batch may hold.
        notes: what was decided without being asked for.
        seconds: time in llama.cpp so far, computing and waiting for it.
        calls: batches computed so far.
    """

    def __init__(self, weights: Weights, options: LoadOptions) -> None:
        """Allocates."""
        self._library: Library = library()
        api = self._library.api
        recurrent = _is_recurrent(api, weights)
        sequences = sequence_count(options, recurrent)
        self._address = _make(self._library, weights, _parameters(api, weights, options, sequences))
        self._name = weights.metadata.name
        self._adapters: list[int] = []
        try:
            self._adapters = set_adapters(self._library, weights, self._address, options)
        except BaseException:
            api.llama_free(self._address)
            raise
        self._bind()
        self.branches = sequences - 1
        self.batch = Batch(api, int(api.llama_n_batch(self._address)))
        self.limit = self._usable(weights, options)
        self.notes = _notes(weights, options, self.limit)
        self._window = int(api.llama_model_n_swa(weights.handle))
        self._width = len(weights.vocabulary)
        # The output buffer of other models is allocated in full at once and never moves.
        self._moves = recurrent
        self.seconds = 0.0
        self.calls = 0
        self._views: dict[tuple[int, int], Rows] = {}

    def _bind(self) -> None:
        """Prototypes with plain addresses, which cost less per call than the binding's."""
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
        self._earliest = function("llama_memory_seq_pos_min", number, address, number)

    def decode(self) -> None:
        """Computes the batch.

        Raises:
            ContextOverflow, Cancelled, MemoryShortage, ModelError: by llama.cpp's return code;
                part of the batch may have been added to the memory.
        """
        started = time.perf_counter()
        code = self._decode(self._handle, self.batch.raw)
        self.seconds += time.perf_counter() - started
        self.calls += 1
        if code:
            raise self._failure(code)

    def rows(self, count: int) -> Rows:
        """The logits of the last `count` tokens that asked for them: a view, shape (count, n)."""
        started = time.perf_counter()
        address = self._logits(self._handle, -count)  # waits for a GPU
        self.seconds += time.perf_counter() - started
        key = (address, count)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = self._view(address, count)
        return view.copy() if self._moves else view

    def row(self, place: int) -> Rows:
        """The logits of the token at `place` of the batch: a view, shape (n,)."""
        return self._view(self._logits(self._handle, place), 1)[0]

    def copy_sequence(self, number: int) -> None:
        """Makes the sequence `number` share the tokens of the running one."""
        self._copy(self._memory, _RUNNING, number, -1, -1)

    def drop_sequence(self, number: int) -> None:
        """Forgets the sequence `number`."""
        self._remove(self._memory, number, -1, -1)

    def cut(self, length: int) -> bool:
        """Drops the running sequence from position `length` on.

        Returns:
            False where this memory cannot forget a part: then all of it has been dropped.
        """
        if length > 0 and self._remove(self._memory, _RUNNING, length, -1):
            # A sliding window may already have let go of tokens that come into sight again, or of
            # all that is left (-1).
            earliest = self._earliest(self._memory, _RUNNING)
            if not self._window or 0 <= earliest <= max(0, length - self._window):
                return True
        self._clear(self._memory, True)
        return length == 0

    @contextmanager
    def watched(self, stop: Callable[[], bool]) -> Iterator[None]:
        """Asks `stop` while batches are computed (on the CPU) and between them."""
        raised: list[BaseException] = []

        def asked(_data: object) -> bool:
            try:
                return stop()
            except BaseException as error:  # an exception cannot leave a C callback
                raised.append(error)
                return True

        api = self._library.api
        callback = api.ggml_abort_callback(asked)
        api.llama_set_abort_callback(self._address, callback, None)
        try:
            yield
        except Cancelled:
            if raised:
                raise raised[0] from None
            raise
        finally:
            api.llama_set_abort_callback(self._address, api.ggml_abort_callback(), None)

    def close(self) -> None:
        """Frees the memory."""
        self._views.clear()
        self._library.api.llama_free(self._address)
        free_adapters(self._library, self._adapters)

    def _view(self, address: int | None, count: int) -> Rows:
        if not address:
            raise ModelError(f"{self._name}: llama.cpp returned no logits.")
        memory = (ctypes.c_float * (count * self._width)).from_address(address)
        return np.ctypeslib.as_array(memory).reshape(count, self._width)

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
        """Tokens that may be used: llama.cpp pads a context, beyond what a model may know."""
        allocated = int(self._library.api.llama_n_ctx(self._address))
        trained = weights.metadata.context_length
        if 0 < trained < allocated and (options.context or 0) <= trained:
            return trained
        return allocated


def _notes(weights: Weights, options: LoadOptions, limit: int) -> tuple[str, ...]:
    metadata, notes = weights.metadata, []
    trained = metadata.context_length
    if options.context is None and limit < trained:
        notes.append(
            f"{metadata.name}: the context holds {limit:,} of the {trained:,} tokens that the "
            "model was trained for; --ctx-size changes that."
        )
    if options.context is not None and 0 < trained < options.context:
        notes.append(
            f"{metadata.name}: the context of {options.context:,} tokens is longer than the "
            f"{trained:,} that the model was trained for; answers may get worse."
        )
    if 0 < metadata.gpu_layers < metadata.layers:
        notes.append(
            f"{metadata.name}: {metadata.gpu_layers} of {metadata.layers} layers are on the GPU."
        )
    return tuple(notes)


def _is_recurrent(api: Any, weights: Weights) -> bool:
    """Whether the model keeps a state (also beside a KV cache) that cannot be cut back."""
    handle = weights.handle
    return bool(api.llama_model_is_recurrent(handle) or api.llama_model_is_hybrid(handle))


def _make(library: Library, weights: Weights, parameters: Any) -> int:
    api = library.api
    library.forget_errors()
    address = api.llama_init_from_model(weights.handle, parameters)
    name = weights.metadata.name
    if not address:
        said = library.last_error()
        if "alloc" in said:
            raise MemoryShortage(f"{name}: {said}. Use a smaller --ctx-size.")
        raise ModelError(f"{name} cannot be run: {said or 'llama.cpp gives no reason'}.")
    if not api.llama_get_memory(address):
        api.llama_free(address)
        raise ModelError(f"{name} keeps no context, so it cannot write text.")
    return int(address)


def _parameters(api: Any, weights: Weights, options: LoadOptions, sequences: int) -> Any:
    threads = options.threads or physical_cores()
    result = api.llama_context_default_params()
    result.n_ctx = context_size(weights.header, options)
    result.n_batch = result.n_ubatch = options.batch_size(weights.metadata.gpu_layers > 0)
    result.n_seq_max = sequences
    # llama.cpp reserves a row for each sequence, and aborts where that is not allowed for.
    result.n_outputs_max = max(options.max_rows, sequences)
    result.n_threads = result.n_threads_batch = threads
    result.flash_attn_type = _FLASH[options.flash_attention]
    result.type_k = result.type_v = _GGML_TYPES[options.kv_type]
    result.no_perf = True
    result.swa_full = options.whole_window
    result.kv_unified = True  # branches share the cells of the running sequence
    return result
