"""Which layers go to a GPU: what loading does by itself, and what can be said of it before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from capt_local.engine.library import Device
from capt_local.engine.memory import MemoryEstimate
from capt_local.engine.options import LoadOptions

# Left free on a GPU for the backend itself.
GPU_RESERVE = 512 << 20


def free_on_gpus(devices: Iterable[Device]) -> int:
    """Bytes that models may take on the GPUs, 0 where there are none."""
    return sum(max(0, device.free - GPU_RESERVE) for device in devices if device.is_gpu)


def planned_layers(
    each: Mapping[str, MemoryEstimate], options: LoadOptions, free: int
) -> dict[str, int]:
    """Layers of each model on the GPU, when they load one after the other.

    Args:
        each: estimates in the order of loading; models that share weights as one.
        options: say how many are wanted.
        free: bytes on the GPUs, see `free_on_gpus`.
    """
    planned: dict[str, int] = {}
    there = free > 0
    for role, one in each.items():
        match options.gpu_layers:
            case "auto":
                layers = one.layers_that_fit(free)
            case "all":
                layers = one.layers
            case number:
                layers = min(number, one.layers)
        planned[role] = layers if there else 0
        if planned[role]:
            share = layers / max(one.layers, 1)
            free -= int((one.weights + one.adapters + one.kv_cache) * share) + one.buffers
            free = max(0, free)
    return planned
