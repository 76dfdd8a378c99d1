"""How a llama.cpp context is made: its parameters, and notes about it."""

from __future__ import annotations

from typing import Any

from capt_local.errors import MemoryShortage, ModelError
from capt_local.llama.library import Library
from capt_local.llama.memory import context_size
from capt_local.llama.options import LoadOptions
from capt_local.llama.weights import Weights

CONTEXT_UNIT = 256  # llama.cpp pads a context to a multiple of this

_FLASH = {"auto": -1, "off": 0, "on": 1}
_GGML_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}


def notes(weights: Weights, options: LoadOptions, limit: int) -> tuple[str, ...]:
    """What was decided about a context that was not requested, a sentence each."""
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
    """Whether the model keeps a state (also beside a KV cache) that cannot be cut back."""
    handle = weights.handle
    return bool(api.llama_model_is_recurrent(handle) or api.llama_model_is_hybrid(handle))


def can_rewind(api: Any, weights: Weights, options: LoadOptions) -> bool:
    """Whether the memory can forget the end of a sequence: no state, and no window cut short."""
    windowed = bool(api.llama_model_n_swa(weights.handle)) and not options.whole_window
    return not (windowed or is_recurrent(api, weights))


def make_context(library: Library, weights: Weights, parameters: Any) -> int:
    """A new context; its address.

    Raises:
        MemoryShortage, ModelError: llama.cpp gives none, with its own words.
    """
    api = library.api
    library.forget_errors()
    address = api.llama_init_from_model(weights.handle, parameters)
    name = weights.metadata.name
    if not address:
        reason = library.last_error()
        if "alloc" in reason:
            raise MemoryShortage(f"{name}: {reason}. Use a smaller --ctx-size.")
        raise ModelError(f"{name} cannot be run: {reason or 'llama.cpp gives no reason'}.")
    if not api.llama_get_memory(address):
        api.llama_free(address)
        raise ModelError(f"{name} keeps no context, so it cannot write text.")
    return int(address)


def context_parameters(
    api: Any, weights: Weights, options: LoadOptions, sequences: int, threads: int, *, apart: bool
) -> Any:
    """What `make_context` takes.

    Args:
        api: the binding's C functions.
        weights: of the model.
        options: of the context.
        sequences: how many it may hold.
        threads: that compute, until `llama_set_n_threads` says otherwise.
        apart: whether each has cells of its own for the whole context, and one more unit of them;
            else all share those of one context.
    """
    result = api.llama_context_default_params()
    result.n_ctx = context_size(weights.header, options)
    if apart:
        result.n_ctx = sequences * cells_of_lane(weights, options)
    result.n_batch = result.n_ubatch = max(
        options.batch_size(weights.metadata.gpu_layers > 0), sequences if apart else 0
    )
    result.n_seq_max = sequences
    # llama.cpp reserves a row for each sequence, and aborts where that is not allowed for.
    result.n_outputs_max = max(options.max_rows, sequences)
    result.n_threads = result.n_threads_batch = threads
    result.flash_attn_type = _FLASH[options.flash(weights.metadata.gpu_layers > 0)]
    result.type_k = result.type_v = _GGML_TYPES[options.kv_type]
    result.no_perf = True
    result.swa_full = options.whole_window
    result.kv_unified = not apart  # the scratch copy shares the cells of the running sequence
    return result


def cells_of_lane(weights: Weights, options: LoadOptions) -> int:
    """Cells of a sequence that has its own: the context, and space for what fills up a batch."""
    size = context_size(weights.header, options)
    return -(-size // CONTEXT_UNIT) * CONTEXT_UNIT + CONTEXT_UNIT
