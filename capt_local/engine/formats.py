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
from typing import Any, NamedTuple

_CPU = 0
_TILED = ("AMX",)  # these crash, unless the build was mended
_MENDED = b"capt-local: whole tile configuration"


class Rearranging(NamedTuple):
    """The formats that weights are rearranged into.

    Attributes:
        used: names of those that llama.cpp may use.
        left_out: names of those that were taken off its list.
    """

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
        folder: where the libraries lie; those of the CPU are asked whether they were mended.

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
    kept = [one for one in formats if one not in crashing]
    for place in range(len(formats)):  # the list ends at the first null
        entries[place] = kept[place] if place < len(kept) else None
    return Rearranging(tuple(names[one] for one in kept), tuple(names[one] for one in crashing))


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
