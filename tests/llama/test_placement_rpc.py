"""Layers on devices, for real: two processes of llama.cpp's RPC backend stand for GPUs.

    CMAKE_ARGS=-DGGML_RPC=on pip install --force-reinstall --no-deps --no-binary llama-cpp-python \
        llama-cpp-python==0.3.36
    pytest -m slow tests/llama/test_placement_rpc.py
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capt_local.llama.gguf_header import read_header
from capt_local.llama.library import library
from capt_local.llama.options import LoadOptions
from capt_local.llama.resources import estimate
from tests.tiny_models import tiny_gguf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(library().api._lib, "ggml_backend_rpc_add_server"),
        reason="llama-cpp-python was built without -DGGML_RPC=on",
    ),
]

LAYERS = 6
# F32 throughout, as ONE_THREAD: other devices differ by rounding alone.
OPTIONS = {"threads": 1, "max_rows": 8, "batch": 64, "kv_type": "f32", "flash_attention": "off"}
Server = subprocess.Popen[bytes]


def child(*arguments: str, **more: Any) -> Server:
    command = [sys.executable, "-m", "tests.children.rpc", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


@pytest.fixture(autouse=True)
def no_network() -> None:
    """The loopback is allowed here."""


@pytest.fixture
def devices() -> Iterator[tuple[str, list[Server]]]:
    """Two devices, RPC0 and RPC1: their ports and processes."""
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    servers = [child("serve", str(port)) for port in ports]
    try:
        for port in ports:
            for attempt in range(300):
                with socket.socket() as trial:
                    if trial.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert attempt < 299
                time.sleep(0.1)
        yield ",".join(map(str, ports)), servers
    finally:
        for server in servers:
            server.kill()
            server.communicate()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    flavours = {"target": "bpe", "expert": "spm", "base": "spm"}
    return {
        role: tiny_gguf(tmp_path / f"{role}.gguf", seed=at, flavour=flavour, layers=LAYERS,
                        context=4096)  # type: ignore[arg-type]
        for at, (role, flavour) in enumerate(flavours.items())
    }  # fmt: skip


def test_logits_and_places_are_those_of_the_plan(
    devices: tuple[str, list[Server]], files: dict[str, Path]
) -> None:
    def found(free: dict[str, int] | None = None, **placement: object) -> Any:
        options = json.dumps(OPTIONS | placement)
        free_text = json.dumps(free or {})
        process = child("logits", devices[0], str(files["target"]), options, free_text)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        return json.loads(out)

    one = estimate(read_header(files["target"]), LoadOptions(**OPTIONS))  # type: ignore[arg-type]
    size, last = one.layer_bytes()[-2:]
    # The output and two layers; three layers.
    small = {"RPC0": one.buffers + 3 * size, "RPC1": one.buffers + 2 * size + last}
    if small["RPC0"] > small["RPC1"]:
        small["RPC1"], small["RPC0"] = one.buffers + 3 * size + last, one.buffers + 3 * size
    cpu = found(devices=["CPU"])
    assert cpu["planned"] == {} and cpu["assigned"] == {"CPU": LAYERS + 1}
    for free, placement, planned in (
        ({}, {}, {"RPC0": LAYERS + 1}),
        ({}, {"gpu_layers": 3}, {"RPC0": 3}),
        ({}, {"devices": ["RPC1"]}, {"RPC1": LAYERS + 1}),
        ({}, {"gpu_layers": "all", "tensor_split": [3, 1]}, {"RPC0": 6, "RPC1": 1}),
        ({}, {"gpu_layers": 4, "tensor_split": [1, 1]}, {"RPC0": 2, "RPC1": 2}),
        (small, {}, {"RPC0": 3, "RPC1": 4}),
    ):
        there = found(free, **placement)  # type: ignore[arg-type]
        assert there["planned"] == planned, placement
        on_cpu = {"CPU": LAYERS + 1 - sum(planned.values())}
        assert there["assigned"] == planned | {k: v for k, v in on_cpu.items() if v}
        np.testing.assert_allclose(there["rows"], cpu["rows"], rtol=0, atol=1e-4)


def command(files: dict[str, Path], *more: str) -> list[str]:
    models = [part for role, path in files.items() for part in (f"--{role}", str(path))]
    return ["generate", *models, "-t", "1", "-c", "2048", "-p", "Pt. with cough.", *more]


def test_answers_on_devices_are_those_of_the_cpu(
    devices: tuple[str, list[Server]], files: dict[str, Path]
) -> None:
    def answer(*flags: str) -> bytes:
        process = child("cli", devices[0], *command(files, "-n", "48", *flags))
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err.decode()
        return out

    wanted = answer("--device", "CPU")
    assert len(wanted) > 48
    own = ["--device", "target:RPC0", "--device", "expert:RPC1", "--device", "base:CPU"]
    for flags in ([], own, ["--tensor-split", "1,2"], ["-ngl", "target:2", "-ngl", "all"]):
        assert answer(*flags) == wanted, flags
    process = child("cli", devices[0], *command(files, "--device", "RPC2"))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and b"it has CPU, RPC0, RPC1" in err


@pytest.mark.parametrize("speed", ["auto", "exact-steps"])
def test_a_device_that_dies_in_mid_answer_ends_it_with_exit_3(
    devices: tuple[str, list[Server]], files: dict[str, Path], speed: str
) -> None:
    where = ["--device", "target:RPC0", "--device", "RPC1", "--speed", speed, "--temp", "1"]
    flags = command(files, "-n", "1500", "--no-repetition-stop", *where)
    process = child("cli", devices[0], *flags)
    assert process.stdout is not None
    shown = process.stdout.read(60)
    devices[1][1].kill()  # the expert's and the base's
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err.decode()
    lines = err.decode().splitlines()
    assert lines[-1].startswith("error: A device of llama.cpp failed"), lines
    assert "Traceback" not in err.decode()
    whole = subprocess.run(
        [sys.executable, "-m", "capt_local", *command(files, "-n", "1500", "--no-repetition-stop"),
         "--speed", speed, "--temp", "1"], capture_output=True, check=True,
    ).stdout  # fmt: skip
    assert whole.startswith(shown + out.removesuffix(b"\n")), "a wrong answer, or text that is lost"
