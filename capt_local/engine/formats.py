"""The formats that llama.cpp rearranges weights into for the CPU, without those that crash.

On a CPU with AMX, llama.cpp prefers tiles. In the version that is pinned, a tile's configuration
can be optimised away by the compiler, and the first batch of several tokens ends the process
(llama.cpp issue 20824, pull request 26954). AVX-512 does the same work, so AMX is taken off the
list that is asked when a model is loaded, unless the build says that it was mended
(scripts/binding/tiles.h).
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_CPU = 0
_CRASHING = (b"AMX",)
_MENDED = b"capt-local: whole tile configuration"


def leave_out_crashing(
    ggml: Callable[..., Callable[..., Any]], folder: Path
) -> tuple[str, ...]:
    """Takes formats that crash off llama.cpp's list, before any model is loaded.

    Args:
        ggml: `ggml(name, result, *arguments)` gives a function of the ggml library.
        folder: where the libraries lie; those of the CPU are asked whether they were mended.

    Returns:
        Names of what was taken off.
    """
    address = ctypes.c_void_p
    device = ggml("ggml_backend_dev_by_type", address, ctypes.c_int)(_CPU)
    registry = ggml("ggml_backend_dev_backend_reg", address, address)(device)
    find = ggml("ggml_backend_reg_get_proc_address", address, address, ctypes.c_char_p)
    found = find(registry, b"ggml_backend_dev_get_extra_bufts")
    if not found:
        return ()
    name = ggml("ggml_backend_buft_name", ctypes.c_char_p, address)
    entries = ctypes.CFUNCTYPE(ctypes.POINTER(address), address)(found)(device)
    formats: list[int] = []
    while entries and entries[len(formats)]:
        formats.append(entries[len(formats)])
    crashing = [one for one in formats if name(one) in _CRASHING]
    if not crashing or mended(folder.glob("*ggml-cpu*")):
        return ()
    kept = [one for one in formats if one not in crashing]
    for place in range(len(formats)):  # the list ends at the first null
        entries[place] = kept[place] if place < len(kept) else None
    return tuple(name(one).decode() for one in crashing)


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
