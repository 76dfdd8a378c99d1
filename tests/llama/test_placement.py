"""Which layers go to a GPU when models load one after the other."""

from __future__ import annotations

from capt_local.engine.library import Device
from capt_local.engine.memory import MemoryEstimate
from capt_local.engine.options import LoadOptions
from capt_local.engine.placement import GPU_RESERVE, free_on_gpus, planned_layers

MIB = 1 << 20
ONE = MemoryEstimate(weights=800 * MIB, kv_cache=200 * MIB, buffers=100 * MIB, layers=10)
TRIO = {"target": ONE, "expert": ONE, "base": ONE}


def device(kind: str, free: int) -> Device:
    return Device("x", "", kind, free, free)


def test_what_is_free_leaves_the_backend_its_part() -> None:
    devices = [device("CPU", 9 << 30), device("GPU", GPU_RESERVE + 5), device("GPU", 3)]
    assert free_on_gpus(devices) == 5
    assert free_on_gpus([]) == 0


def test_each_model_gets_what_those_before_it_leave() -> None:
    every = LoadOptions(gpu_layers="auto")
    assert planned_layers(TRIO, every, 10_000 * MIB) == dict.fromkeys(TRIO, 10)
    assert planned_layers(TRIO, every, 1_750 * MIB) == {"target": 10, "expert": 5, "base": 0}
    assert planned_layers(TRIO, every, 0) == dict.fromkeys(TRIO, 0)


def test_a_number_is_taken_as_it_is() -> None:
    assert planned_layers(TRIO, LoadOptions(gpu_layers=3), MIB) == dict.fromkeys(TRIO, 3)
    assert planned_layers(TRIO, LoadOptions(gpu_layers="all"), 10_000 * MIB)["base"] == 10
    assert planned_layers(TRIO, LoadOptions(gpu_layers=99), 10_000 * MIB)["target"] == 10
    assert planned_layers(TRIO, LoadOptions(gpu_layers=5), 0) == dict.fromkeys(TRIO, 0)
