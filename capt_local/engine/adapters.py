"""LoRA adapters on a context."""

from __future__ import annotations

import ctypes

from capt_local.engine.library import Library
from capt_local.engine.options import LoadOptions
from capt_local.engine.weights import Weights
from capt_local.errors import ModelError


def set_adapters(
    library: Library, weights: Weights, context: int, options: LoadOptions
) -> list[int]:
    """Loads the LoRA adapters of the options and puts them on the context.

    Returns:
        Addresses of the adapters, to be freed after the context.

    Raises:
        ModelError: a file is missing or does not fit the model.
    """
    address = ctypes.c_void_p
    load = library.function("llama_adapter_lora_init", address, address, ctypes.c_char_p)
    loaded: list[int] = []
    for adapter in options.adapters:
        name = adapter.path.name
        library.forget_errors()
        exists = adapter.path.is_file()
        handle = load(weights.handle, bytes(adapter.path)) if exists else None
        if not handle:
            free_adapters(library, loaded)
            said = library.last_error().replace(str(adapter.path), name)
            raise ModelError(
                f"{name} cannot be used as an adapter of {weights.metadata.name}: "
                f"{said or 'there is no such file'}."
            )
        loaded.append(handle)
    if loaded:
        put = library.function(
            "llama_set_adapters_lora", ctypes.c_int32, address, address, ctypes.c_size_t, address
        )
        scales = (ctypes.c_float * len(loaded))(*(one.scale for one in options.adapters))
        put(context, (address * len(loaded))(*loaded), len(loaded), scales)
    return loaded


def free_adapters(library: Library, adapters: list[int]) -> None:
    """Frees adapters; no context may use them any more."""
    free = library.function("llama_adapter_lora_free", None, ctypes.c_void_p)
    for adapter in adapters:
        free(adapter)
    adapters.clear()
