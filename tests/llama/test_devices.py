"""What llama.cpp computes on: devices, layers, formats of weights, prices of batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from capt_local.llama import devices
from capt_local.llama.devices import (
    mended,
    planned_layers,
)
from capt_local.llama.library import library
from capt_local.llama.memory import MemoryEstimate
from capt_local.llama.options import LoadOptions


def test_every_device_of_this_machine_computes() -> None:
    devices = library().devices()
    assert devices
    assert all(library().computes(index) for index in range(len(devices)))


def test_wrong_numbers_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    product = devices._product

    def off_by_one(*arguments: object) -> object:
        found = product(*arguments)  # type: ignore[arg-type]
        assert found is not None
        found[0, 0] += 1
        return found

    monkeypatch.setattr(devices, "_product", off_by_one)
    assert not library().computes(0)
    monkeypatch.setattr(devices, "_product", lambda *_: np.full((4, 16), np.nan, np.float32))
    assert not library().computes(0)


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
    assert not mended(_written(tmp_path, *contents))


def test_here_tiles_are_left_out_or_mended() -> None:
    info = library().build_info()
    folder = Path(library().api._lib._name).parent
    amx = "AMX_INT8 = 1" in info.system_info
    assert ("AMX" in info.left_out) == (amx and not mended(folder.glob("*ggml-cpu*")))


MIB = 1 << 20
ONE = MemoryEstimate(weights=800 * MIB, kv_cache=200 * MIB, buffers=100 * MIB, layers=10)
TRIO = {"target": ONE, "expert": ONE, "base": ONE}


def test_each_model_gets_what_those_before_it_leave() -> None:
    every = LoadOptions(gpu_layers="auto")
    assert planned_layers(TRIO, every, 10_000 * MIB) == dict.fromkeys(TRIO, 10)
    assert planned_layers(TRIO, every, 1_750 * MIB) == {"target": 10, "expert": 5, "base": 0}
    assert planned_layers(TRIO, every, 0) == dict.fromkeys(TRIO, 0)
