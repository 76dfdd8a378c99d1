"""Lanes for all models of a bundle: on the weights that are loaded, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from capt_local.errors import MemoryShortage
from capt_local.llama.lanes import Lanes
from capt_local.llama.library import library
from capt_local.llama.memory import MemoryEstimate, available_memory, estimate
from capt_local.llama.model import LlamaModel
from capt_local.llama.parameters import cells_of_lane

MOST_LANES = 256  # llama.cpp keeps sequence ids in a bit set of so many

_GPU_RESERVE = 256 << 20  # left free for the backend itself
_MIB = 1 << 20


def open_lanes(models: Mapping[str, LlamaModel], count: int) -> dict[str, Lanes]:
    """Makes lanes beside the contexts that the models have.

    Args:
        models: by role.
        count: lanes of each; there are at least two.

    Raises:
        MemoryShortage: so many do not fit; says how many would.
    """
    count = max(count, 2)
    _check_fits(models, count)
    made: dict[str, Lanes] = {}
    try:
        for role, model in models.items():
            made[role] = Lanes(model.weights, model.options, count, name=role)
    except BaseException:
        for lanes in made.values():
            lanes.close()
        raise
    return made


def _check_fits(models: Mapping[str, LlamaModel], count: int) -> None:
    needed = {role: _lane(model) for role, model in models.items()}
    most = count
    beside = [one.beside_gpu(models[role].metadata.gpu_layers) for role, one in needed.items()]
    most = min(most, _fitting(beside, available_memory()))
    gpus = [device.free for device in library().devices() if device.is_gpu]
    if gpus:
        there = [
            replace(one, kv_cache=one.kv_cache - rest.kv_cache)
            for one, rest in zip(needed.values(), beside, strict=True)
        ]
        most = min(most, _fitting(there, sum(gpus) - _GPU_RESERVE * len(gpus)))
    if most >= count:
        return
    each = sum(one.kv_cache for one in needed.values()) / _MIB
    offer = f"{most} would fit" if most > 1 else "one at a time is all that fits"
    raise MemoryShortage(
        f"Not enough memory to answer {count} requests at once: each takes {each:,.0f} MiB; "
        f"{offer}. Ask for fewer at once, or use a smaller --ctx-size."
    )


def _lane(model: LlamaModel) -> MemoryEstimate:
    """What the first lane of a model takes; more of them take its KV cache again."""
    cells = cells_of_lane(model.weights, model.options)
    return replace(
        estimate(model.weights.header, replace(model.options, context=cells)), weights=0, adapters=0
    )


def _fitting(needed: list[MemoryEstimate], free: int) -> int:
    """How many lanes fit beside the buffers."""
    each = sum(one.kv_cache for one in needed)
    return int(max(0, free - sum(one.buffers for one in needed)) // max(each, 1))
