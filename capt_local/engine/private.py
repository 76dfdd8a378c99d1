"""What keeps the memory of this process, which holds text of patients, from other places."""

from __future__ import annotations

import contextlib
import ctypes
import sys

_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4  # <linux/prctl.h>
_FIRST_TO_GO = "500"  # of 1,000


def keep_memory_private() -> None:
    """No core dump of this process; on Linux no other process of its user may look into it."""
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    if sys.platform == "linux":
        # A core pattern that is a pipe ignores the limit, but not this.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def memory_is_private() -> bool | None:
    """Whether no core dump of this process can be written; None where nobody can say."""
    if sys.platform == "win32":
        return None
    import resource

    if sys.platform == "linux":
        try:
            return ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 0
        except (OSError, AttributeError):
            return None
    return resource.getrlimit(resource.RLIMIT_CORE)[0] == 0


def be_first_to_go() -> None:
    """Asks Linux to end this process before others where memory runs out.

    Call it before `keep_memory_private`, behind which the file is root's.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write(_FIRST_TO_GO)
