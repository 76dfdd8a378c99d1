"""Linux: a process gives up system calls that reach beyond it, for itself and all its threads.

A filter of the kernel (seccomp) answers them with "not permitted": sockets, other programs, signals
to and memory of other processes, and whatever makes, changes, renames or deletes a file. Reading
files stays, and a signal to itself: that is how `abort` ends a process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable

# <linux/filter.h>: load a word, jump if equal, if at least, if any bit is set; return.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# <linux/seccomp.h>
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_PR_SET_NO_NEW_PRIVS, _SET_FILTER, _ALL_THREADS = 38, 1, 1
# Of `struct seccomp_data`: the call, the architecture, the lower half of the first argument.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_OTHER_ABI = 0x40000000  # calls of x32 begin here
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
_TYPING = 0x5412  # TIOCSTI: what a terminal takes for typed

# pidfd_send_signal, io_uring_setup, openat2, pidfd_getfd, fchmodat2, setxattrat, removexattrat
_EVERYWHERE = (424, 425, 437, 438, 452, 463, 466)

# By machine: the call that sets a filter; the kernel's number of the architecture; calls that are
# forbidden by one of their arguments, and what it says; calls that are forbidden.
_MACHINES: dict[str, tuple[int, int, dict[int, tuple[int, str]], tuple[int, ...]]] = {
    "x86_64": (
        317,
        0xC000003E,
        {2: (1, "flags"), 257: (2, "flags"),  # open, openat
         16: (1, "request"), 234: (0, "process"), 302: (0, "self")},  # ioctl, tgkill, prlimit64
        (41, 42, 44, 46, 49, 50,  # socket, connect, sendto, sendmsg, bind, listen
         59, 322, 101, 310, 311,  # execve, execveat, ptrace, process_vm_readv, process_vm_writev
         76, 77, 82, 83, 84, 85, 86, 87, 88,  # truncate to symlink
         90, 91, 92, 93, 94, 165,  # chmod, fchmod, chown, fchown, lchown, mount
         258, 260, 263, 264, 265, 266, 268, 316,  # mkdirat to fchmodat, renameat2
         62, 129, 200, 297,  # kill, rt_sigqueueinfo, tkill, rt_tgsigqueueinfo
         132, 133, 235, 259, 261, 280,  # utime, mknod, utimes, mknodat, futimesat, utimensat
         188, 189, 190, 197, 198, 199,  # setxattr to fsetxattr, removexattr to fremovexattr
         *_EVERYWHERE),
    ),
    "aarch64": (
        277,
        0xC00000B7,
        {56: (2, "flags"),  # openat
         29: (1, "request"), 131: (0, "process"), 261: (0, "self")},  # ioctl, tgkill, prlimit64
        (198, 200, 201, 203, 206, 211,  # socket, bind, listen, connect, sendto, sendmsg
         221, 281, 117, 270, 271,  # execve, execveat, ptrace, process_vm_readv, process_vm_writev
         34, 35, 36, 37, 38, 40, 45, 46, 276,  # mkdirat to renameat, mount, truncates, renameat2
         52, 53, 54, 55,  # fchmod to fchown
         129, 130, 138, 240,  # kill, tkill, rt_sigqueueinfo, rt_tgsigqueueinfo
         33, 88,  # mknodat, utimensat
         5, 6, 7, 14, 15, 16,  # setxattr to fsetxattr, removexattr to fremovexattr
         *_EVERYWHERE),
    ),
}  # fmt: skip


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid_calls() -> bool:
    """Gives the calls up.

    Returns:
        Whether the kernel does it: on Linux, on the machines that are known here.
    """
    known = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or known is None or sys.maxsize < 1 << 32:
        return False
    call, architecture, judged, forbidden = known
    code = b"".join(_instructions(architecture, judged, forbidden))
    program = _Program(len(code) // 8, code)
    c, word = ctypes.CDLL(None), ctypes.c_ulong
    if c.prctl(_PR_SET_NO_NEW_PRIVS, word(1), word(0), word(0), word(0)):
        return False
    done: int = c.syscall(word(call), word(_SET_FILTER), word(_ALL_THREADS), ctypes.byref(program))
    return done == 0


def _instructions(
    architecture: int, judged: dict[int, tuple[int, str]], forbidden: tuple[int, ...]
) -> Iterable[bytes]:
    """The filter: each instruction with how many to pass over where it is so, and where not."""
    yield _one(_LOAD, _ARCHITECTURE)
    yield _one(_EQUAL, architecture, 1, 0)
    yield _one(_RETURN, _KILL)
    yield _one(_LOAD, _NUMBER)
    # What to ask of an argument, and how many to pass over, beginning with where it is so.
    tests = {
        "flags": (_ANY_BIT, _WRITING, 0, 1),
        "request": (_EQUAL, _TYPING, 0, 1),
        "process": (_EQUAL, os.getpid(), 1, 0),
        "self": (_EQUAL, 0, 1, 0),
    }
    for call, (argument, what) in judged.items():
        yield _one(_EQUAL, call, 0, 4)
        yield _one(_LOAD, _ARGUMENTS + 8 * argument)
        yield _one(*tests[what])
        yield _one(_RETURN, _ERROR | errno.EPERM)
        yield _one(_RETURN, _ALLOW)
    for count, call in enumerate(forbidden):
        yield _one(_EQUAL, call, len(forbidden) - count + 1, 0)
    yield _one(_AT_LEAST, _OTHER_ABI, 1, 0)
    yield _one(_RETURN, _ALLOW)
    yield _one(_RETURN, _ERROR | errno.EPERM)


def _one(code: int, value: int, met: int = 0, unmet: int = 0) -> bytes:
    return struct.pack("=HBBI", code, met, unmet, value)
