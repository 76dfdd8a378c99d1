"""A llama.cpp context: parameters, adapters, decoding a batch, reading rows, cutting sequences."""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from capt_local.errors import (
    Cancelled,
    CaptError,
    ContextOverflow,
    MemoryShortage,
    ModelError,
)
from capt_local.llama.adapters import put_adapters
from capt_local.llama.batch import Batch
from capt_local.llama.library import Library, library
from capt_local.llama.memory import SEQUENCES
from capt_local.llama.options import LoadOptions
from capt_local.llama.parameters import (
    CONTEXT_UNIT,
    can_rewind,
    context_parameters,
    is_recurrent,
    make_context,
    notes,
)
from capt_local.llama.threads import ThreadCount
from capt_local.llama.weights import Weights

Rows = npt.NDArray[np.float32]

_NO_SLOT, _ABORTED, _NO_MEMORY = 1, 2, -2
_RUNNING = 0  # the sequence that `extend` appends to


class Context:
    """The KV cache and buffers of one model, and the calls that a step needs.

    Args:
        weights: which must stay open as long as this.
        options: of the context.
        lanes: 0 for one running sequence and a scratch copy of it; else as many
            sequences with memory of their own, each for the whole context.

    Attributes:
        batch: what the next `decode` computes.
        limit: tokens that fit.
        can_rewind: whether the memory can forget a part of a sequence.
        notes: what was decided without being asked for.
        seconds: time in llama.cpp so far, computing and waiting for it.
        sizes: batches computed so far, by their tokens, those that filled one up among them.
        adapter_scales: of its adapters, in their order.
    """

    def __init__(self, weights: Weights, options: LoadOptions, *, lanes: int = 0) -> None:
        """Allocates."""
        self._library: Library = library()
        api = self._library.api
        recurrent = is_recurrent(api, weights)
        sequences = lanes or SEQUENCES
        exact = options.flash(weights.metadata.gpu_layers > 0) == "off"
        self._threads = ThreadCount(options.threads, follow=exact)
        parameters = context_parameters(
            api, weights, options, sequences, self._threads.count, apart=bool(lanes)
        )
        self._address = make_context(self._library, weights, parameters)
        self._name = weights.metadata.name
        self.adapter_scales: tuple[float, ...] = ()
        try:
            self._adapters = [weights.adapter(one.path) for one in options.adapters]
            self.scale_adapters(tuple(one.scale for one in options.adapters))
        except BaseException:
            api.llama_free(self._address)
            raise
        self._bind()
        self._apart = bool(lanes)
        self.batch = Batch(api, int(api.llama_n_batch(self._address)))
        self.limit = self._usable(weights, options)
        told = (note for one in self._adapters for note in one.notes)
        self.notes = (*notes(weights, options, self.limit), *told)
        self._window = int(api.llama_model_n_swa(weights.handle))
        self._width = len(weights.vocabulary)
        self.can_rewind = can_rewind(api, weights, options)
        # The output buffer of other models is allocated in full at once and never moves.
        self._moves = recurrent
        self.seconds = 0.0
        self.sizes: Counter[int] = Counter()
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
        if self._threads.changed():
            count = self._threads.count
            self._library.api.llama_set_n_threads(self._address, count, count)
        started = time.perf_counter()
        code = self._decode(self._handle, self.batch.raw)
        self.seconds += time.perf_counter() - started
        self.sizes[self.batch.raw.n_tokens] += 1
        if code:
            raise self._failure(code)

    def scale_adapters(self, scales: tuple[float, ...]) -> None:
        """Gives the adapters other weights; what was read with others stays in the memory."""
        if scales != self.adapter_scales:
            put_adapters(self._library, self._adapters, scales, self._address)
            self.adapter_scales = scales

    def forget_counts(self) -> None:
        """Starts the counters at 0."""
        self.seconds = 0.0
        self.sizes.clear()

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

    def copy_sequence(self, number: int, length: int = -1, source: int = _RUNNING) -> None:
        """Gives the sequence `number` the first tokens of another; -1: all, as lanes must."""
        self._copy(self._memory, source, number, -1, length)

    def drop_sequence(self, number: int) -> None:
        """Forgets the sequence `number`."""
        self._remove(self._memory, number, -1, -1)

    def cut(self, length: int, number: int = _RUNNING) -> bool:
        """Drops a sequence from position `length` on.

        Returns:
            False where this memory cannot forget a part: then all of it has been dropped.
        """
        if length > 0 and self._remove(self._memory, number, length, -1):
            # A sliding window may already have let go of tokens that come into sight again, or of
            # all that is left (-1).
            earliest = self._earliest(self._memory, number)
            if not self._window or 0 <= earliest <= max(0, length - self._window):
                return True
        if self._apart:
            self.drop_sequence(number)
        else:
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
        allocated = int(self._library.api.llama_n_ctx_seq(self._address))
        if self._apart:
            allocated -= CONTEXT_UNIT
        trained = weights.metadata.context_length
        if 0 < trained < allocated and (options.context or 0) <= trained:
            return trained
        return allocated
