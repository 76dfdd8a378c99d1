"""A process that gives up, for the rest of its life, what it will not need."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

from capt_local.engine.forbidden_calls import forbid_calls
from capt_local.engine.private import keep_memory_private

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def confine() -> bool:
    """Gives up writing files, core dumps and, on Linux, the network, other programs and new rights.

    It ends when the process that started it does. Ctrl-C of a terminal is for the other process.

    Returns:
        Whether the kernel forbids system calls, so that more than limits hold.
    """
    forbidden = False
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            forbidden = forbid_calls()
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    keep_memory_private()
    return forbidden


def allow_memory(more: int) -> None:
    """Sets how much memory this process may take beyond what it has; Linux only.

    Args:
        more: bytes.
    """
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (_data() + more, hard))


def _data() -> int:
    """Bytes that the limit counts now: data, stack and private memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
