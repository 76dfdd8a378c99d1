"""Devices of llama.cpp's RPC backend on the loopback, to test placement without a GPU.

RPC is neither encrypted nor authenticated, so nothing of the package offers it.

    python -m tests.children.rpc serve PORT                          a device: the CPU of it
    python -m tests.children.rpc cli PORT,... ARGUMENTS              capt-local on such devices
    python -m tests.children.rpc logits PORT,... MODEL OPTIONS FREE  rows of a prompt, as JSON
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from capt_local.cli import app
from capt_local.llama.devices import GPU_RESERVE
from capt_local.llama.library import Library, library
from capt_local.llama.model import LlamaModel
from capt_local.llama.options import LoadOptions

HOST = "127.0.0.1"


def serve(port: str) -> None:
    """Is a device until it is killed."""
    address, size = ctypes.c_void_p, ctypes.c_size_t
    function = library().function
    cpu = (address * 1)(function("ggml_backend_dev_by_type", address, ctypes.c_int)(0))
    start = function(
        "ggml_backend_rpc_start_server", None, ctypes.c_char_p, ctypes.c_char_p, size, size, address
    )
    start(f"{HOST}:{port}".encode(), None, 1, 1, cpu)


def connect(ports: str) -> None:
    """Makes the devices known to llama.cpp in this process."""
    address, function = ctypes.c_void_p, library().function
    add = function("ggml_backend_rpc_add_server", address, ctypes.c_char_p)
    register = function("ggml_backend_register", None, address)
    for port in ports.split(","):
        register(add(f"{HOST}:{port}".encode()))


def logits(model: str, given: str, bytes_: str) -> dict[str, Any]:
    """Rows of a prompt and of a step after it, with the devices that llama.cpp itself names.

    Args:
        model: the file.
        given: LoadOptions as JSON.
        bytes_: what devices say that they have free for models, as JSON, by name.
    """
    free, true_devices = json.loads(bytes_), Library.devices

    def devices(self: Library) -> Any:
        return tuple(
            dataclasses.replace(one, free=free[one.name] + GPU_RESERVE) if one.name in free else one
            for one in true_devices(self)
        )

    Library.devices = devices  # type: ignore[method-assign]
    log: list[str] = []
    api = library().api
    callback = api.llama_log_callback(lambda _level, text, _data: log.append(text.decode()))
    api.llama_log_set(callback, None)
    with LlamaModel.open(Path(model), msgspec.json.decode(given, type=LoadOptions)) as opened:
        rows = opened.extend([*range(5, 40)], rows=4).tolist()
        rows += opened.step([7]).tolist()
        planned = opened.metadata.devices
    found = re.findall(r"layer +\d+ assigned to device ([^,\s]+)", "".join(log))
    return {"rows": rows, "planned": planned, "assigned": Counter(found)}


if __name__ == "__main__":
    what, ports, *rest = sys.argv[1:]
    if what == "serve":
        serve(ports)
    if ports:
        connect(ports)
    if what == "cli":
        app.main(rest)
    print(json.dumps(logits(*rest)))
