"""Whether a device computes: a small matrix product on it, checked against numpy."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

Function = Callable[..., Callable[..., Any]]

_ADDRESS, _SIZE, _INT64 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
_F32 = 0  # ggml's number of the format
_ROOM = 4 << 20  # bytes for the description of one product
_INNER, _ROWS, _COLUMNS = 64, 16, 4
# Backends may multiply in 16 or 19 bits; the entries are below 1, so that a sum of 64 stays small.
_TOLERANCE = 0.1


class _Room(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def computes(ggml: Function, index: int) -> bool:
    """Multiplies two small matrices on a device.

    Args:
        ggml: gives a function of ggml by name, result and argument types.
        index: of the device, in ggml's order.

    Returns:
        Whether it gave the right numbers; False too where it cannot be started.
    """
    random = np.random.default_rng(7)
    left = random.uniform(-1, 1, (_ROWS, _INNER)).astype(np.float32)
    right = random.uniform(-1, 1, (_COLUMNS, _INNER)).astype(np.float32)
    found = _product(ggml, index, left, right)
    wanted = right @ left.T
    return found is not None and bool(np.allclose(found, wanted, rtol=0, atol=_TOLERANCE))


def _product(
    ggml: Function, index: int, left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32] | None:
    """`right @ left.T` as the device computes it, shape (columns, rows)."""
    with ExitStack() as stack:

        def made(address: int | None, free: str) -> int | None:
            if address:
                stack.callback(ggml(free, None, _ADDRESS), address)
            return address

        device = ggml("ggml_backend_dev_get", _ADDRESS, _SIZE)(index)
        start = ggml("ggml_backend_dev_init", _ADDRESS, _ADDRESS, ctypes.c_char_p)
        backend = made(start(device, None), "ggml_backend_free")
        room = made(ggml("ggml_init", _ADDRESS, _Room)(_Room(_ROOM, None, True)), "ggml_free")
        if not backend or not room:
            return None
        matrix = ggml("ggml_new_tensor_2d", _ADDRESS, _ADDRESS, ctypes.c_int, _INT64, _INT64)
        tensors = [matrix(room, _F32, each.shape[1], each.shape[0]) for each in (left, right)]
        product = ggml("ggml_mul_mat", _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS)(room, *tensors)
        graph = ggml("ggml_new_graph", _ADDRESS, _ADDRESS)(room)
        ggml("ggml_build_forward_expand", None, _ADDRESS, _ADDRESS)(graph, product)
        take = ggml("ggml_backend_alloc_ctx_tensors", _ADDRESS, _ADDRESS, _ADDRESS)
        if not made(take(room, backend), "ggml_backend_buffer_free"):
            return None
        put = ggml("ggml_backend_tensor_set", None, _ADDRESS, _ADDRESS, _SIZE, _SIZE)
        for tensor, values in zip(tensors, (left, right), strict=True):
            put(tensor, values.ctypes.data, 0, values.nbytes)
        compute = ggml("ggml_backend_graph_compute", ctypes.c_int, _ADDRESS, _ADDRESS)
        if compute(backend, graph) != 0:
            return None
        found = np.empty((len(right), len(left)), np.float32)
        get = ggml("ggml_backend_tensor_get", None, _ADDRESS, _ADDRESS, _SIZE, _SIZE)
        get(product, found.ctypes.data, 0, found.nbytes)
        return found
