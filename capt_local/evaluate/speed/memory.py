"""What a loaded bundle takes in memory."""

from __future__ import annotations

from pathlib import Path

import psutil

from capt_local.engine.gguf_header import read_header
from capt_local.engine.memory import estimate
from capt_local.engine.options import LoadOptions
from capt_local.runtime import Runtime


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(psutil.Process().memory_info().rss)


def memory_over(runtime: Runtime, lanes: int = 0) -> int:
    """Bytes that this process holds beyond the model files and the KV caches.

    Args:
        runtime: with all models.
        lanes: bytes of lanes beside the models' own contexts, which do not count.
    """
    rest = resident() - lanes
    counted: set[Path] = set()
    for role, model in runtime.models.items():
        file = runtime.bundle.models[role]
        path = file.path.resolve()
        for part in (path, *((file.adapter.path.resolve(),) if file.adapter else ())):
            if part not in counted:  # models of one file share its weights
                rest -= part.stat().st_size
                counted.add(part)
        options = LoadOptions(context=model.context_limit)
        rest -= estimate(read_header(path), options).kv_cache
    return rest
