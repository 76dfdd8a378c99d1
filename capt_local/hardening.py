"""Keeps the memory of this process private, and sandboxes processes that read untrusted files.

Every verb first calls `keep_memory_private`: no core dump, and on Linux no other process of the
same account may read this one's memory. `run_isolated` starts a process for untrusted input
(`llama.probe`, `documents.process`), which calls `confine`: on Linux a seccomp filter allows the
system calls of a fixed list and refuses all others.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

_PR_SET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 1, 3, 4  # <linux/prctl.h>
_PR_SET_NO_NEW_PRIVS = 38
_OOM_SCORE = "500"  # of 1,000

# Environment to find the libraries, without GPUs, whose drivers take memory and seconds to start.
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "CUDA_PATH")
_SET = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "HIP_VISIBLE_DEVICES": "-1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


_POLL_SECONDS = 0.1  # seconds between two calls of `waiting`
_PATIENCE = 5.0  # seconds that a process may take to exit after closing its output


def run_isolated(
    program: str,
    request: bytes,
    *,
    seconds: float,
    largest: int,
    handles: Sequence[int] = (),
    waiting: Callable[[], None] | None = None,
) -> tuple[bytes, int | None]:
    """Runs a Python program with this package in a new process without the user's terminal.

    Its imports depend neither on the working directory nor on the environment.

    Args:
        program: its source.
        request: its standard input.
        seconds: time limit; beyond it TimeoutError is raised.
        largest: limit of its standard output, in bytes.
        handles: file descriptors that it inherits.
        waiting: called several times a second; may raise to stop.

    Returns:
        Its output and its exit code; None if it did not exit, or wrote more than `largest` bytes.
    """
    import select  # imported here: every verb imports this file, and few start a process
    import subprocess
    import threading

    start = "import sys; sys.path.insert(0, sys.argv[1]); "
    package = str(Path(__file__).resolve().parents[1])
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", start + program, package],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in _KEPT if name in os.environ} | _SET,
        pass_fds=tuple(handles),
        start_new_session=True,
    )
    incoming, outgoing = process.stdin, process.stdout
    assert incoming is not None and outgoing is not None

    def send() -> None:
        with contextlib.suppress(OSError, ValueError), incoming:  # it may have ended already
            incoming.write(request)

    sender = threading.Thread(target=send, daemon=True)
    found, until, code = bytearray(), time.monotonic() + seconds, None
    try:
        sender.start()
        while len(found) <= largest:
            if waiting is not None:
                waiting()
            if time.monotonic() > until:
                raise TimeoutError
            if select.select([outgoing], [], [], _POLL_SECONDS)[0]:
                part = os.read(outgoing.fileno(), 1 << 20)
                if not part:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        code = process.wait(_PATIENCE)
                    break
                found += part
        return bytes(found), code
    finally:
        process.kill()
        process.wait()
        outgoing.close()
        sender.join()


def detach_standard_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Copies of standard input and output; the originals then lead to the null device."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)
    return incoming, outgoing


def limit_memory(more: int) -> None:
    """Limits this process to `more` bytes above its present memory (Linux only).

    RLIMIT_DATA counts data, stacks and private mappings.
    """
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_DATA, (now + more, now + more))


def keep_memory_private() -> None:
    """Forbids core dumps, and on Linux reading this process's memory from another one."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    if sys.platform == "linux":
        # A core pattern that is a pipe ignores RLIMIT_CORE, but not this flag.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def memory_is_private() -> bool:
    """Whether no core dump of this process can be written."""
    if sys.platform == "linux":
        return bool(ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 0)
    return resource.getrlimit(resource.RLIMIT_CORE)[0] == 0


def prefer_oom_kill() -> None:
    """Makes this process a preferred victim of Linux's out-of-memory killer.

    Call it before `keep_memory_private`, after which only root may write the file.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write(_OOM_SCORE)


def confine() -> bool:
    """Permanently drops the rights that reading model files does not need.

    The process is killed when its parent ends. It ignores Ctrl-C, which the parent handles. As root
    it keeps only the capability to read files.

    Returns:
        Whether the kernel enforces the list of system calls; False outside Linux.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if not 0 <= soft <= _LARGEST_STACK:  # unlimited is -1
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_STACK, (_LARGEST_STACK, hard))
    keep_memory_private()
    if sys.platform != "linux":
        return False
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    machine = _MACHINES.get(os.uname().machine)
    if machine is None or sys.maxsize < 1 << 32 or not _drop_capabilities(machine):
        return False
    return _install(machine, b"".join(_filter(machine)))


# --- the filter of system calls (seccomp) ---------------------------------------------------------
#
# <linux/filter.h>: load a word, jump if equal, if any bit is set; return.
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
# <linux/seccomp.h>
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_SET_FILTER, _ALL_THREADS = 1, 1
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # of `struct seccomp_data`
_CAPABILITY_VERSION = 0x20080522  # <linux/capability.h>
_DAC_READ_SEARCH = 1 << 2


def _one(code: int, value: int, met: int = 0, unmet: int = 0) -> bytes:
    return struct.pack("=HBBI", code, met, unmet, value)


_REFUSE = _one(_RETURN, _ERROR | errno.EPERM)
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
# MAP_SHARED, MAP_GROWSDOWN: mappings that RLIMIT_DATA does not count.
_UNCOUNTED = 0x1 | 0x100
_LARGEST_STACK = 64 << 20
_TERMINAL_READS = (0x5401, 0x5450, 0x5451)  # TCGETS, FIONCLEX, FIOCLEX
_DESCRIPTOR_FLAGS = (1, 2, 3, 1030)  # F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC

# Allowed calls with their numbers on x86_64 and aarch64 (None: no such call there): reading files
# and folders, memory, time, its own signals. Not listed, and so refused: processes and threads
# (llama.cpp runs with one thread here), sockets, shared memory, message queues, keys, files by
# handle, priorities, limits, and everything that writes, changes or deletes a file.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "ppoll": (271, 73), "lseek": (8, 62),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216),
    "madvise": (28, 233), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "restart_syscall": (219, 128),
    "pread64": (17, 67), "readv": (19, 65), "writev": (20, 66), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "newfstatat": (262, 79), "statx": (332, 291),
    "getdents64": (217, 61), "getcwd": (79, 17), "readlink": (89, None), "readlinkat": (267, 78),
    "fadvise64": (221, 223), "dup": (32, 23), "sched_yield": (24, 124), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getsid": (124, 156), "uname": (63, 160), "sysinfo": (99, 179), "getrlimit": (97, 163),
    "sched_getaffinity": (204, 123), "futex": (202, 98), "set_robust_list": (273, 99),
    "set_tid_address": (218, 96), "rseq": (334, 293), "membarrier": (324, 283),
    "getrandom": (318, 278), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip


class _Condition(NamedTuple):
    """A condition on one 32-bit word of a call's arguments; the low word of each comes first."""

    word: int
    refused_bits: int = 0
    values: Sequence[int] = ()


def _conditional() -> dict[tuple[int | None, int | None], tuple[_Condition, ...]]:
    """Calls that are allowed with certain arguments only, by their numbers."""
    return {
        (2, None): (_Condition(2, refused_bits=_WRITING),),  # open
        (257, 56): (_Condition(4, refused_bits=_WRITING),),  # openat
        # No mappings that RLIMIT_DATA does not count; a shared one could also write to a file.
        (9, 222): (_Condition(6, refused_bits=_UNCOUNTED),),  # mmap
        (16, 29): (_Condition(2, values=_TERMINAL_READS),),  # ioctl
        (72, 25): (_Condition(2, values=_DESCRIPTOR_FLAGS),),  # fcntl
        (234, 131): (_Condition(0, values=(os.getpid(),)),),  # tgkill: how `abort` ends a process
        # prlimit64 may read the limits of this process: process 0, no new limit (a pointer).
        (302, 261): tuple(_Condition(word, values=(0,)) for word in (0, 4, 5)),
    }


_CLONE3 = (435, 435)  # its flags are in memory, which a filter cannot inspect


class _Machine(NamedTuple):
    """Numbers of a processor: AUDIT_ARCH and two system calls; `column`: in `_ALLOWED`."""

    column: int
    architecture: int
    seccomp: int
    capset: int


_MACHINES = {
    "x86_64": _Machine(0, 0xC000003E, 317, 126),
    "aarch64": _Machine(1, 0xC00000B7, 277, 91),
}


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _drop_capabilities(machine: _Machine) -> bool:
    """Drops root's capabilities except reading files; other accounts have none."""
    if os.geteuid() != 0:
        return True
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    data = (ctypes.c_uint32 * 6)(_DAC_READ_SEARCH, _DAC_READ_SEARCH, 0, 0, 0, 0)
    call = ctypes.c_ulong(machine.capset)
    done: int = ctypes.CDLL(None).syscall(call, ctypes.byref(header), ctypes.byref(data))
    return done == 0


def _install(machine: _Machine, code: bytes) -> bool:
    """Installs a filter for this process and all its threads; False if the kernel refuses."""
    program = _Program(len(code) // 8, code)
    c, word = ctypes.CDLL(None), ctypes.c_ulong
    if c.prctl(_PR_SET_NO_NEW_PRIVS, word(1), word(0), word(0), word(0)):
        return False
    done: int = c.syscall(
        word(machine.seccomp), word(_SET_FILTER), word(_ALL_THREADS), ctypes.byref(program)
    )
    return done == 0


def _filter(machine: _Machine) -> Iterator[bytes]:
    """The BPF instructions of the filter, each with its jump offsets (true, false)."""
    allow = _one(_RETURN, _ALLOW)
    yield _one(_LOAD, _ARCHITECTURE)
    yield _one(_EQUAL, machine.architecture, 1, 0)
    yield _one(_RETURN, _KILL)
    yield _one(_LOAD, _NUMBER)
    for numbers, conditions in _conditional().items():
        number = numbers[machine.column]
        if number is not None:
            tests = [part for condition in conditions for part in _test(condition)]
            yield from _for_call(number, [*tests, allow])
    yield from _for_call(_CLONE3[machine.column], [_one(_RETURN, _ERROR | errno.ENOSYS)])
    for numbers in _ALLOWED.values():
        number = numbers[machine.column]
        if number is not None:
            yield from _for_call(number, [allow])
    yield _REFUSE


def _test(condition: _Condition) -> Iterable[bytes]:
    """Instructions that refuse the call unless the condition is met."""
    yield _one(_LOAD, _ARGUMENTS + 4 * condition.word)
    if condition.refused_bits:
        yield _one(_ANY_BIT, condition.refused_bits, 0, 1)
    for place, value in enumerate(condition.values):
        yield _one(_EQUAL, value, len(condition.values) - place, 0)
    yield _REFUSE


def _for_call(number: int, block: list[bytes]) -> Iterable[bytes]:
    """Instructions that run a terminal block for one system call only."""
    yield _one(_EQUAL, number, 0, len(block))
    yield from block
