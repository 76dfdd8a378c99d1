"""llama.cpp's devices, layers on GPUs, repacked weight formats, and costs of batches.

On a CPU with AMX, llama.cpp prefers AMX tiles. In the pinned version the compiler can optimise away
a tile's configuration, and the first batch of several tokens crashes the process (llama.cpp issue
20824, pull request 26954). AVX-512 does the same work, so AMX is removed from the list of buffer
types that is read when a model is loaded, unless the build contains the mark of the fix
(scripts/binding/tiles.h).
"""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from capt_local.errors import UsageError
from capt_local.llama.options import CPU, Placement
from capt_local.llama.resources import MemoryEstimate

DEVICE_KINDS = ("CPU", "GPU", "integrated GPU", "accelerator", "composite")


@dataclass(frozen=True, slots=True)
class Device:
    """A device of llama.cpp; memory in bytes, 0 if unknown."""

    name: str
    description: str
    kind: str
    free: int
    total: int
    identity: str = ""  # hardware id if known, as two backends may list the same GPU

    @property
    def is_gpu(self) -> bool:
        """Whether layers can be put on it."""
        return self.kind in ("GPU", "integrated GPU")


class DeviceProperties(ctypes.Structure):
    """`struct ggml_backend_dev_props`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("memory_free", ctypes.c_size_t),
        ("memory_total", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("capabilities", ctypes.c_bool * 16),  # fewer flags are there
    )


# --- layers on GPUs

# Left free on each GPU for the backend itself.
GPU_RESERVE = 512 << 20

Layers = dict[str, int]  # number of a model's layers on each GPU, by name, in order of layers


def plan(
    models: Mapping[str, MemoryEstimate],
    options: Mapping[str, Placement],
    devices: Sequence[Device],
) -> dict[str, Layers]:
    """The number of layers of each model on each GPU; the others stay in main memory.

    Models are placed in order, each in the memory that earlier ones leave free. A model uses as few
    GPUs as possible, those with the most free memory first: layers run one after the other, so that
    more GPUs are not faster. Of a model that does not fit, the last layers go to GPUs. If more
    layers are required than fit, they are divided by free memory, and with --tensor-split by its
    proportions, both as in llama.cpp.

    Args:
        models: estimates in the order of loading; models that share weights count as one.
        options: the placement of each model.
        devices: of llama.cpp.

    Raises:
        UsageError: a device does not exist, there is no GPU for requested layers, or the number of
            proportions is not that of the devices.
    """
    free = {one.name: max(0, one.free - GPU_RESERVE) for one in devices if one.is_gpu}
    planned: dict[str, Layers] = {}
    for role, one in models.items():
        planned[role] = _placed(one, options[role], _names(options[role], devices), free)
        for name, taken in one.on_gpus(planned[role]).items():
            free[name] = max(0, free[name] - taken)
    return planned


def default_gpus(devices: Sequence[Device]) -> list[str]:
    """The GPUs that llama.cpp uses by default: integrated ones only if there are no others."""
    gpus = [device for device in devices if device.is_gpu]
    separate = [device for device in gpus if device.kind == "GPU"]
    names: dict[str, str] = {}
    for one in separate or gpus:
        names.setdefault(one.identity or one.name, one.name)
    return list(names.values())


def _names(options: Placement, devices: Sequence[Device]) -> list[str]:
    """The GPUs that a model may use."""
    known = [CPU, *(device.name for device in devices if device.is_gpu)]
    if not set(options.devices) <= set(known):
        raise UsageError(f"--device names no device of this machine; it has {', '.join(known)}.")
    names = [name for name in options.devices if name != CPU]
    if not options.devices:
        names = default_gpus(devices)
    if options.gpu_layers not in ("auto", 0) and not names:
        raise UsageError(
            f"--gpu-layers {options.gpu_layers} was asked for, but this build of llama.cpp "
            "sees no GPU. Use --gpu-layers 0 or auto."
        )
    if options.tensor_split and not options.devices and len(options.tensor_split) != len(names):
        raise UsageError(
            f"--tensor-split has {len(options.tensor_split)} numbers, but there are {len(names)} "
            "GPUs."
        )
    return names


def _placed(
    one: MemoryEstimate, options: Placement, names: Sequence[str], free: Mapping[str, int]
) -> Layers:
    """The layers of one model, given the memory that is still free on each GPU."""
    automatic, number = options.gpu_layers == "auto", options.gpu_layers
    wanted = min(number, one.layers) if isinstance(number, int) else one.layers
    if not names:
        return {}
    if options.tensor_split:
        found = _divided(wanted, names, options.tensor_split)
        while automatic and any(size > free[at] for at, size in one.on_gpus(found).items()):
            wanted -= 1
            found = _divided(wanted, names, options.tensor_split)
        return found
    sizes, found = one.layer_bytes(), {}
    end, first = one.layers, one.layers - wanted
    for name in sorted(names, key=lambda name: free[name], reverse=True):
        space, at = free[name] - one.buffers, end
        while at > first and sizes[at - 1] <= space:
            at -= 1
            space -= sizes[at]
        if at < end:
            found[name] = end - at
        end = at
    if end > first and not automatic:
        return _divided(wanted, names, [max(1, free[name]) for name in names])
    return dict(reversed(found.items()))  # the last layers went first


def _divided(layers: int, names: Sequence[str], proportions: Sequence[float]) -> Layers:
    """Divides layers by proportions, like `llama_model::load_tensors`."""
    ends = [total / sum(proportions) for total in accumulate(proportions)]
    places = [min(bisect_right(ends, at / layers), len(names) - 1) for at in range(layers)]
    return {name: places.count(at) for at, name in enumerate(names) if at in places}


# --- formats that llama.cpp repacks weights into for the CPU, without those that crash

_CPU = 0
_TILED = ("AMX",)  # these crash, unless the build has the fix
_TILE_FIX_MARK = b"capt-local: whole tile configuration"


class Rearranging(NamedTuple):
    """Names of the formats that weights may be repacked into, and of the disabled ones."""

    used: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def tiles(self) -> bool:
        """Whether batches are computed in AMX tiles of 16 tokens, instead of 4 at a time."""
        return any(name in _TILED for name in self.used)


def disable_crashing_formats(ggml: Callable[..., Callable[..., Any]], folder: Path) -> Rearranging:
    """Removes formats that crash from llama.cpp's list, before any model is loaded.

    Args:
        ggml: `ggml(name, result, *arguments)` returns a function of the ggml library.
        folder: of the libraries; those of the CPU are searched for the mark of the fix.
    """
    address = ctypes.c_void_p
    device = ggml("ggml_backend_dev_by_type", address, ctypes.c_int)(_CPU)
    registry = ggml("ggml_backend_dev_backend_reg", address, address)(device)
    find = ggml("ggml_backend_reg_get_proc_address", address, address, ctypes.c_char_p)
    found = find(registry, b"ggml_backend_dev_get_extra_bufts")
    if not found:
        return Rearranging()
    name = ggml("ggml_backend_buft_name", ctypes.c_char_p, address)
    entries = ctypes.CFUNCTYPE(ctypes.POINTER(address), address)(found)(device)
    formats: list[int] = []
    while entries and entries[len(formats)]:
        formats.append(entries[len(formats)])
    names = {one: name(one).decode() for one in formats}
    crashing = [one for one in formats if names[one] in _TILED]
    if crashing and has_tile_fix(folder.glob("*ggml-cpu*")):
        crashing = []
    left = [one for one in formats if one not in crashing]
    for place in range(len(formats)):  # the list ends at the first null
        entries[place] = left[place] if place < len(left) else None
    return Rearranging(tuple(names[one] for one in left), tuple(names[one] for one in crashing))


def has_tile_fix(libraries: Iterable[Path]) -> bool:
    """Whether there is at least one library, and all of them have the mark of the fix."""
    found = [_holds(path, _TILE_FIX_MARK) for path in libraries]
    return bool(found) and all(found)


def _holds(path: Path, text: bytes) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as map_:
            return map_.find(text) >= 0
    except (OSError, ValueError):  # unreadable or empty
        return False


# --- what a batch of several tokens costs, by the kernels that compute it

# Costs in multiples of a batch of one token, measured on two cores with models of 0.5 and 1.1 B
# parameters: of each further token (CPU, GPU); with kernels for 4 tokens, a constant, each token
# outside a group of 4, and a group of 4; with AMX tiles, a batch of two and each further token.
_FURTHER, _ON_GPU = 0.22, 0.03
_READING, _ONE_OF_FOURS, _FOUR = 0.1, 0.9, 1.45
_TWO_OF_TILE, _FURTHER_OF_TILE = 1.65, 0.17


class Kernels(NamedTuple):
    """The kernels that compute a model's batches, for their costs."""

    by_fours: bool = False  # kernels for groups of 4 tokens; 2 or 3 tokens cost more than 4
    on_gpu: bool = False  # at least a part of the model is on a GPU
    tiles: bool = False  # kernels for tiles of 16 tokens (AMX)

    def cost(self, size: int) -> float:
        """The cost of a batch of `size` tokens, in multiples of a batch of one token."""
        if self.by_fours:
            return _READING + _ONE_OF_FOURS * (size % 4) + _FOUR * (size // 4)
        if self.tiles and size > 1:
            return _TWO_OF_TILE + _FURTHER_OF_TILE * (size - 2)
        return 1.0 + (_ON_GPU if self.on_gpu else _FURTHER) * (size - 1)

    def padded_size(self, size: int) -> int:
        """The cheapest size that a batch of `size` tokens can be padded to, or `size` itself."""
        return min(range(size, size + 4), key=self.cost)


# --- test of a device: a small matrix product on it, compared with numpy

_ADDRESS, _SIZE, _INT64 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
_F32 = 0  # ggml's number of the format
_GRAPH_SPACE = 4 << 20  # bytes for the description of one product
_INNER, _ROWS, _COLUMNS = 64, 16, 4
# Backends may multiply in 16 or 19 bits; entries are below 1, so a sum of 64 has a small error.
_TOLERANCE = 0.1


class _InitParams(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def device_computes(ggml: Callable[..., Callable[..., Any]], index: int) -> bool:
    """Whether a device (by its ggml index) multiplies two small matrices as numpy does."""
    random = np.random.default_rng(7)
    left = random.uniform(-1, 1, (_ROWS, _INNER)).astype(np.float32)
    right = random.uniform(-1, 1, (_COLUMNS, _INNER)).astype(np.float32)
    found = _product(ggml, index, left, right)
    wanted = right @ left.T
    return found is not None and bool(np.allclose(found, wanted, rtol=0, atol=_TOLERANCE))


def _product(
    ggml: Callable[..., Callable[..., Any]],
    index: int,
    left: npt.NDArray[np.float32],
    right: npt.NDArray[np.float32],
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
        context = made(
            ggml("ggml_init", _ADDRESS, _InitParams)(_InitParams(_GRAPH_SPACE, None, True)),
            "ggml_free",
        )
        if not backend or not context:
            return None
        matrix = ggml("ggml_new_tensor_2d", _ADDRESS, _ADDRESS, ctypes.c_int, _INT64, _INT64)
        tensors = [matrix(context, _F32, each.shape[1], each.shape[0]) for each in (left, right)]
        product = ggml("ggml_mul_mat", _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS)(context, *tensors)
        graph = ggml("ggml_new_graph", _ADDRESS, _ADDRESS)(context)
        ggml("ggml_build_forward_expand", None, _ADDRESS, _ADDRESS)(graph, product)
        take = ggml("ggml_backend_alloc_ctx_tensors", _ADDRESS, _ADDRESS, _ADDRESS)
        if not made(take(context, backend), "ggml_backend_buffer_free"):
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
