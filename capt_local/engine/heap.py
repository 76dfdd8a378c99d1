"""Memory that one step frees is at hand for the next.

A step makes some dozen arrays of 0.1 to 1 MB and lets them go again. The C library of Linux gives
memory of that size back to the kernel at once, and asks for it anew a moment later; the pages then
come one by one. That was half of the time of numpy in a step.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>
# Larger than any array of a step, but for rows of many places of a prompt.
_LARGEST = 8 << 20
_KEPT = 32 << 20  # bytes at the end of the heap that may stay unused


def keep_freed_memory() -> bool:
    """Lets this process keep some freed memory, where its C library can be told so (glibc).

    Returns:
        Whether it does now. Settings that somebody made for the process stay as they are.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    with contextlib.suppress(OSError, AttributeError):
        tell = ctypes.CDLL(None).mallopt
        return bool(tell(_MMAP_THRESHOLD, _LARGEST) and tell(_TRIM_THRESHOLD, _KEPT))
    return False
