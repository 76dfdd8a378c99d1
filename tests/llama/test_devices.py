"""What llama.cpp computes on: devices, layers, formats of weights, prices of batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from capt_local.errors import UsageError
from capt_local.llama import devices
from capt_local.llama.devices import GPU_RESERVE, Device, device_computes, has_tile_fix, plan
from capt_local.llama.library import library
from capt_local.llama.options import Placement
from capt_local.llama.resources import MemoryEstimate


def test_every_device_of_this_machine_computes() -> None:
    devices = library().devices()
    assert devices
    assert all(device_computes(library().function, index) for index in range(len(devices)))


def test_wrong_numbers_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    product = devices._product

    def off_by_one(*arguments: object) -> object:
        found = product(*arguments)  # type: ignore[arg-type]
        assert found is not None
        found[0, 0] += 1
        return found

    monkeypatch.setattr(devices, "_product", off_by_one)
    assert not device_computes(library().function, 0)
    monkeypatch.setattr(devices, "_product", lambda *_: np.full((4, 16), np.nan, np.float32))
    assert not device_computes(library().function, 0)


MARK = b"capt-local: whole tile configuration"


def _written(folder: Path, *contents: bytes) -> list[Path]:
    paths = [folder / f"libggml-cpu.so.{number}" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


@pytest.mark.parametrize(
    "contents", [(), (b"",), (b"\x7fELF",), (MARK[:-1],), (MARK, b"\x7fELF"), (MARK, b"")]
)
def test_one_library_without_the_mark_is_enough_to_leave_tiles_out(
    tmp_path: Path, contents: tuple[bytes, ...]
) -> None:
    assert not has_tile_fix(_written(tmp_path, *contents))


def test_here_tiles_are_left_out_or_mended() -> None:
    info = library().build_info()
    folder = Path(library().api._lib._name).parent
    amx = "AMX_INT8 = 1" in info.system_info
    assert ("AMX" in info.left_out) == (amx and not has_tile_fix(folder.glob("*ggml-cpu*")))


# --- where layers go, on devices that are made up

MIB = 1 << 20
# Ten layers of 100 MiB with their part of the KV cache, the output of 300, the input of 200.
ONE = MemoryEstimate(
    weights=1300 * MIB,
    kv_cache=200 * MIB,
    buffers=50 * MIB,
    movable=(*(80 * MIB,) * 10, 300 * MIB),
)
WHOLE = 1350  # MiB on a GPU
TRIO = {"target": ONE, "expert": ONE, "base": ONE}
AUTO = dict.fromkeys(TRIO, Placement())


def gpu(name: str, free: int, **more: str) -> Device:
    """One with so many MiB beside what is left free."""
    return Device(
        name, "made up", more.pop("kind", "GPU"), free * MIB + GPU_RESERVE, 1 << 40, **more
    )


def counts(planned: dict[str, dict[str, int]]) -> list[dict[str, int]]:
    return list(planned.values())


def test_the_target_comes_first_and_each_other_gets_what_is_left() -> None:
    assert counts(plan(TRIO, AUTO, [gpu("A", 3 * WHOLE)])) == [{"A": 11}] * 3
    assert counts(plan(TRIO, AUTO, [gpu("A", 3 * WHOLE - 1)])) == [{"A": 11}, {"A": 11}, {"A": 10}]
    # Buffers of 50, the output of 300, two layers of 100.
    assert counts(plan(TRIO, AUTO, [gpu("A", WHOLE + 550)])) == [{"A": 11}, {"A": 3}, {}]
    assert counts(plan(TRIO, AUTO, [])) == [{}, {}, {}]


def test_a_model_goes_to_as_few_gpus_as_hold_it() -> None:
    two = [gpu("A", WHOLE), gpu("B", 2 * WHOLE)]
    assert counts(plan(TRIO, AUTO, two)) == [{"B": 11}, {"A": 11}, {"B": 11}]
    # Neither holds the target: the output and what follows it are where most is free.
    assert counts(plan(TRIO, AUTO, [gpu("A", 450), gpu("B", 1050)])) == [
        {"A": 3, "B": 7 + 1},
        {},
        {},
    ]


def test_no_gpu_gets_more_than_it_has_free() -> None:
    random = np.random.default_rng(3)
    for _ in range(300):
        devices = [gpu(name, int(random.integers(0, 2000))) for name in "ABC"]
        models = {
            str(number): MemoryEstimate(
                weights=2000 * MIB,
                kv_cache=int(random.integers(0, 300 * MIB)),
                buffers=int(random.integers(0, 90 * MIB)),
                movable=tuple(int(size) for size in random.integers(1, 200 * MIB, 9)),
            )
            for number in range(3)
        }
        split = (1.0, 0.0, 2.5) if random.random() < 0.3 else ()
        planned = plan(models, dict.fromkeys(models, Placement(tensor_split=split)), devices)
        for device in devices:
            taken = [one.on_gpus(planned[at]).get(device.name, 0) for at, one in models.items()]
            assert sum(taken) + GPU_RESERVE <= device.free
        for role, one in models.items():
            # What GPUs do not take is left to main memory; buffers are counted on both sides.
            gpus = one.on_gpus(planned[role])
            rest = one.without_gpu_layers(sum(planned[role].values()))
            both = sum(gpus.values()) + rest.total - one.buffers * (len(gpus) + 1)
            assert abs(both - (one.weights + one.kv_cache)) <= one.layers


def test_flags_say_where_each_model_goes() -> None:
    devices = [Device("CPU", "", "CPU", 1 << 40, 1 << 40), gpu("A", 9999), gpu("B", 9999)]
    options = {
        "target": Placement(tensor_split=(3, 1)),
        "expert": Placement(gpu_layers=2, devices=("B",)),
        "base": Placement(devices=("CPU",)),
    }
    assert counts(plan(TRIO, options, devices)) == [{"A": 9, "B": 2}, {"B": 2}, {}]
    assert plan({"target": ONE}, {"target": Placement(gpu_layers=0)}, devices)["target"] == {}


def test_what_is_insisted_on_is_not_made_less() -> None:
    small = [gpu("A", 100), gpu("B", 300)]
    for layers, wanted in (
        ("all", {"A": 3, "B": 8}),
        (4, {"A": 1, "B": 3}),
        (99, {"A": 3, "B": 8}),
    ):
        options = {"target": Placement(gpu_layers=layers)}  # type: ignore[arg-type]
        assert plan({"target": ONE}, options, small)["target"] == wanted
    uneven = {"target": Placement(gpu_layers="all", tensor_split=(0, 1))}
    assert plan({"target": ONE}, uneven, small)["target"] == {"B": 11}


def test_one_gpu_under_two_names_is_one_and_integrated_ones_come_last() -> None:
    twice = [gpu("CUDA0", 700, identity="0:1"), gpu("Vulkan0", 9000, identity="0:1")]
    integrated = gpu("Vulkan1", 9000, kind="integrated GPU")
    assert plan({"target": ONE}, AUTO, [*twice, integrated])["target"] == {"CUDA0": 3 + 1}
    assert plan({"target": ONE}, AUTO, [integrated])["target"] == {"Vulkan1": 11}
    chosen = {"target": Placement(devices=("Vulkan0",))}
    assert plan({"target": ONE}, chosen, twice)["target"] == {"Vulkan0": 11}


def test_what_is_not_there_is_refused_in_one_line() -> None:
    one = {"target": ONE}
    for placement, there, words in (
        (Placement(devices=("C",)), [gpu("A", 1)], "no device of this machine; it has CPU, A"),
        (Placement(devices=("BLAS",)), [Device("BLAS", "", "accelerator", 0, 0)], "it has CPU"),
        (Placement(tensor_split=(1, 1)), [gpu("A", 1)], "2 numbers, but there are 1"),
        (Placement(gpu_layers="all"), [], "sees no GPU"),
    ):
        with pytest.raises(UsageError, match=words):
            plan(one, {"target": placement}, there)  # type: ignore[arg-type]
    nan, inf = float("nan"), float("inf")
    for given in (
        {"tensor_split": (nan, 1)}, {"tensor_split": (inf, 1)}, {"tensor_split": (1e308, 1e308)},
        {"tensor_split": (-1, 2)}, {"tensor_split": (0, 0)}, {"devices": ("A", "A")},
        {"devices": ("A", "CPU")}, {"devices": ("CPU",), "gpu_layers": 3},
        {"devices": ("A", "B"), "tensor_split": (1,)}, {"gpu_layers": -1},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            Placement(**given)  # type: ignore[arg-type]
