"""What llama.cpp computes on: devices, layers on them, formats of weights, prices of batches.

On a CPU with AMX, llama.cpp prefers tiles. In the version that is pinned, a tile's configuration
can be optimised away by the compiler, and the first batch of several tokens ends the process
(llama.cpp issue 20824, pull request 26954). AVX-512 does the same work, so AMX is removed from the
list that is read when a model is loaded, unless the build says that it was mended
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
    """Something that llama.cpp can compute on; memory in bytes, 0 where unknown."""

    name: str
    description: str
    kind: str
    free: int
    total: int
    identity: str = ""  # of the hardware, where known: two backends may see one GPU

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

Layers = dict[str, int]  # how many of a model each GPU has, by its name, in their order


def plan(
    models: Mapping[str, MemoryEstimate],
    options: Mapping[str, Placement],
    devices: Sequence[Device],
) -> dict[str, Layers]:
    """Which GPUs have how many layers of each model; the others stay in main memory.

    The models load one after the other, and each finds what those before it have left. A model
    goes to as few GPUs as hold it, to those with the most free memory: its layers are computed one
    after the other, so more of them are not faster. Of a model that does not fit, the last layers
    go to GPUs. Where more was insisted on than fits, layers are divided by free memory, and with
    --tensor-split by its proportions, both as llama.cpp does.

    Args:
        models: estimates in the order of loading; models that share weights as one.
        options: where each may go.
        devices: of llama.cpp.

    Raises:
        UsageError: there is no such device, no GPU for layers that were asked for, or there are
            more or fewer proportions than devices.
    """
    free = {one.name: max(0, one.free - GPU_RESERVE) for one in devices if one.is_gpu}
    planned: dict[str, Layers] = {}
    for role, one in models.items():
        planned[role] = _placed(one, options[role], _names(options[role], devices), free)
        for name, taken in one.on_gpus(planned[role]).items():
            free[name] = max(0, free[name] - taken)
    return planned


def default_gpus(devices: Sequence[Device]) -> list[str]:
    """Those that llama.cpp takes without a choice: integrated ones only where there is no other."""
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
    """The layers of one model, beside what others have taken."""
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
    """So many layers by proportions, as `llama_model::load_tensors` divides them."""
    ends = [total / sum(proportions) for total in accumulate(proportions)]
    places = [min(bisect_right(ends, at / layers), len(names) - 1) for at in range(layers)]
    return {name: places.count(at) for at, name in enumerate(names) if at in places}


# --- formats that llama.cpp rearranges weights into for the CPU, without those that crash

_CPU = 0
_TILED = ("AMX",)  # these crash, unless the build was mended
_MENDED = b"capt-local: whole tile configuration"


class Rearranging(NamedTuple):
    """Names of the formats that weights may be rearranged into, and of those that are left out."""

    used: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def tiles(self) -> bool:
        """Whether batches are computed in tiles of 16 tokens, not by fours."""
        return any(name in _TILED for name in self.used)


def leave_out_crashing(ggml: Callable[..., Callable[..., Any]], folder: Path) -> Rearranging:
    """Takes formats that crash off llama.cpp's list, before any model is loaded.

    Args:
        ggml: `ggml(name, result, *arguments)` gives a function of the ggml library.
        folder: where the libraries lie; those of the CPU are searched for the mark of the mend.
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
    if crashing and mended(folder.glob("*ggml-cpu*")):
        crashing = []
    left = [one for one in formats if one not in crashing]
    for place in range(len(formats)):  # the list ends at the first null
        entries[place] = left[place] if place < len(left) else None
    return Rearranging(tuple(names[one] for one in left), tuple(names[one] for one in crashing))


def mended(libraries: Iterable[Path]) -> bool:
    """Whether all of these files, of which there is one at least, were built with the mend."""
    found = [_holds(path, _MENDED) for path in libraries]
    return bool(found) and all(found)


def _holds(path: Path, text: bytes) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as map_:
            return map_.find(text) >= 0
    except (OSError, ValueError):  # unreadable or empty
        return False


# --- what a batch of several tokens costs, by the kernels that compute it

# In batches of one token, measured on two cores on weights of 0.5 and 1.1 B: the first token of
# all and each further one; where kernels take four at once, a whole four of them; where they take
# tiles of 16, a batch of two and each further token. A GPU reads the weights once for all.
_FURTHER, _ON_GPU = 0.22, 0.03
_READING, _ONE_OF_FOURS, _FOUR = 0.1, 0.9, 1.45
_TWO_OF_TILE, _FURTHER_OF_TILE = 1.65, 0.17


class Kernels(NamedTuple):
    """Those of one model."""

    by_fours: bool = False  # they take four tokens of a batch at once; two or three cost more
    on_gpu: bool = False  # a GPU computes at least a part of the model
    tiles: bool = False  # they take tiles of 16 tokens (AMX)

    def cost(self, size: int) -> float:
        """What a batch of so many tokens costs, in batches of one."""
        if self.by_fours:
            return _READING + _ONE_OF_FOURS * (size % 4) + _FOUR * (size // 4)
        if self.tiles and size > 1:
            return _TWO_OF_TILE + _FURTHER_OF_TILE * (size - 2)
        return 1.0 + (_ON_GPU if self.on_gpu else _FURTHER) * (size - 1)

    def filled(self, size: int) -> int:
        """The size that a batch is filled up to since that is cheaper, or its own."""
        return min(range(size, size + 4), key=self.cost)


# --- whether a device computes: a small matrix product on it, compared with numpy

_ADDRESS, _SIZE, _INT64 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
_F32 = 0  # ggml's number of the format
_GRAPH_SPACE = 4 << 20  # bytes for the description of one product
_INNER, _ROWS, _COLUMNS = 64, 16, 4
# Backends may multiply in 16 or 19 bits; the entries are below 1, so that a sum of 64 stays small.
_TOLERANCE = 0.1


class _InitParams(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def device_computes(ggml: Callable[..., Callable[..., Any]], index: int) -> bool:
    """Whether a device (by ggml's number of it) multiplies two small matrices as numpy does."""
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
