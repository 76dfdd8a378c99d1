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
    api = library.api
    loaded: list[int] = []
    for adapter in options.adapters:
        name = adapter.path.name
        library.forget_errors()
        handle = None
        if adapter.path.is_file():
            handle = api.llama_adapter_lora_init(weights.handle, bytes(adapter.path))
        if not handle:
            free_adapters(library, loaded)
            said = library.last_error().replace(str(adapter.path), name)
            raise ModelError(
                f"{name} cannot be used as an adapter of {weights.metadata.name}: "
                f"{said or 'there is no such file'}."
            )
        loaded.append(int(handle))
    if loaded:
        scales = (ctypes.c_float * len(loaded))(*(one.scale for one in options.adapters))
        handles = (ctypes.c_void_p * len(loaded))(*loaded)
        api.llama_set_adapters_lora(context, handles, len(loaded), scales)
    return loaded


def free_adapters(library: Library, adapters: list[int]) -> None:
    """Frees adapters; no context may use them any more."""
    for adapter in adapters:
        library.api.llama_adapter_lora_free(adapter)
    adapters.clear()
