"""The process that looks at model files first: what it takes, and what it cannot do."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from capt_local import hardening
from capt_local.errors import ModelError, UsageError
from capt_local.llama import probe as probe_module
from capt_local.llama.gguf_header import read_header
from capt_local.llama.probe import probe_files
from tests.real_models import smollm2
from tests.tiny_models import tiny_adapter, tiny_gguf

TinyPath = Callable[..., Path]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process give it up")
START = "import sys; sys.path.insert(0, sys.argv[1]); line = sys.stdin.readline(); "


def program(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Lets the other process do something else."""
    monkeypatch.setattr(probe_module, "_PROGRAM", START + code)


def confined(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Lets it do something else when it has given up what it can."""
    told = f"""
import json
from capt_local.hardening import confine, limit_memory
limit_memory(json.loads(sys.stdin.readline())["memory"])
assert confine()
try:
{code}
except OSError as error:
    print("refused: it was not permitted,", type(error).__name__, error.errno)
else:
    print("passed")
"""
    monkeypatch.setattr(
        probe_module, "_PROGRAM", f"import sys; sys.path.insert(0, sys.argv[1]); exec({told!r})"
    )


def test_each_model_has_a_process_of_its_own(
    tiny_path: TinyPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a hostile file did to a process, no other file meets."""
    started, popen = [], subprocess.Popen

    def counted(*arguments: Any, **more: Any) -> Any:
        started.append(popen(*arguments, **more))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", counted)
    probe_files(tiny_path("spm"))
    probe_files(tiny_path(), [tiny_adapter(tmp_path / "lora.gguf", seed=2)])
    with pytest.raises(ModelError, match=r"nan\.gguf"):
        probe_files(tiny_gguf(tmp_path / "nan.gguf", seed=1, nan=True))
    assert len({each.pid for each in started}) == 3
    assert all(each.poll() is not None for each in started)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", r"ended the process that looked at it \(code -6\)"),
        ("1 / 0", r"\(code 1\)"),
        ("import os; os.kill(os.getpid(), 9)", r"\(code -9\)"),
        ("print('x' * 10_000)", r"ended the process"),
        ("print('hm', flush=True)", "says nothing clear"),
        ("print('refused: \\x1b[2Ja.gguf is bad.', flush=True)", r"^\[2Ja\.gguf is bad\.$"),
    ],
)
def test_an_end_or_an_odd_answer_is_a_named_error(
    tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    program(monkeypatch, code)
    with pytest.raises(ModelError, match=said):
        probe_files(tiny_path())


def test_one_that_hangs_is_ended(tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(probe_module, "_SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"bpe\.gguf kept the process .* busy for more than"):
        probe_files(tiny_path())
    assert time.monotonic() - started < 10


@LINUX
@pytest.mark.parametrize(
    "code",
    [
        "bytes(8 << 30)",
        "import mmap; mmap.mmap(-1, 8 << 30, flags=mmap.MAP_PRIVATE)",
        "import mmap; mmap.mmap(-1, 8 << 30, flags=mmap.MAP_PRIVATE | 0x20000)",  # MAP_STACK
    ],
    ids=["heap", "mapping", "stack"],
)
def test_more_memory_than_the_header_explains_is_not_there(
    tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    confined(
        monkeypatch,
        f"""
    import errno
    try:
        {code}
    except MemoryError:
        raise OSError(errno.ENOMEM, "") from None""",
    )
    with pytest.raises(ModelError, match="it was not permitted, OSError 12"):
        probe_files(tiny_path())


# What it may not do; {place} is a folder.
BEYOND = [
    "import socket; socket.socket()",
    "import os; os.execv('/bin/true', ['true'])",
    "open({place!r} + '/new', 'w')",
    "import os; os.truncate({place!r} + '/there', 0)",
    "import os; os.unlink({place!r} + '/there')",
    "import os; os.chmod({place!r} + '/there', 0o777)",
    "import os; os.symlink('/', {place!r} + '/link')",
    "import os; os.kill(os.getppid(), 0)",
    "import os, signal; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)",
    "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))",
    "import os; os.mkfifo({place!r} + '/pipe')",
    "import os; os.utime({place!r} + '/there', (0, 0))",
    "import os; os.setxattr(os.open({place!r} + '/there', os.O_RDONLY), 'user.a', b'b')",
    "import fcntl; fcntl.ioctl(0, 0x5412, b'x')",
    "import os; os.fork()",
    "import os; os.setsid()",
    "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 5)",
    "import os; os.sched_setaffinity(os.getppid(), {{0}})",
    "import os; os.memfd_create('a')",
    "import mmap; mmap.mmap(-1, 4096)",
    # MAP_GROWSDOWN, which no limit of memory counts
    "import mmap; mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | 0x100)",
    "import resource; resource.prlimit(0, resource.RLIMIT_NOFILE, (1, 1))",
]
# Calls that Python has no name for: their numbers on x86-64 and arm64.
CALLS = [
    ("kill", 62, 129), ("tkill", 200, 130), ("tgkill", 234, 131),
    ("rt_sigqueueinfo", 129, 138), ("rt_tgsigqueueinfo", 297, 240),
    ("pidfd_getfd", 438, 438), ("fchmodat2", 452, 452), ("clone", 56, 220),
    ("vfork", 58, 220), ("msgget", 68, 186), ("shmget", 29, 194), ("semget", 64, 190),
    ("mq_open", 240, 180), ("add_key", 248, 217), ("keyctl", 250, 219),
    ("open_by_handle_at", 304, 265), ("name_to_handle_at", 303, 264), ("prctl", 157, 167),
    ("ptrace", 101, 117), ("setrlimit", 160, 164), ("process_vm_readv", 310, 270),
    ("io_uring_setup", 425, 425),
    ("userfaultfd", 323, 282), ("perf_event_open", 298, 241), ("bpf", 321, 280),
    ("unshare", 272, 97), ("setns", 308, 268), ("mount", 165, 40), ("chroot", 161, 51),
    ("setpgid", 109, 154), ("ioprio_set", 251, 30), ("process_madvise", 440, 440),
    ("x32 read", 0x40000000, 0x40000000),
]  # fmt: skip


@LINUX
def test_it_cannot_reach_beyond_itself(
    tiny_path: TinyPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").write_text("content")
    before = (tmp_path / "there").stat()
    column = 2 if platform.machine() == "aarch64" else 1
    native = (
        "import ctypes, os; c, parent = ctypes.CDLL(None, use_errno=True), os.getppid()\n"
        "if c.syscall({0}, parent, parent, 0, 0): raise OSError(ctypes.get_errno(), '')"
    )
    tried = [each.format(place=str(tmp_path)) for each in BEYOND]
    tried += [native.format(call[column]) for call in CALLS]
    code = f"""
    allowed = []
    for each in {tried!r}:
        try:
            exec(each, {{}})
        except PermissionError as error:
            if error.errno == 1:
                continue
        except Exception:
            pass
        allowed.append(each[:60])
    if allowed:
        sys.stdout.write("refused: " + str(allowed) + chr(10))
        sys.stdout.flush()"""
    confined(monkeypatch, code)
    probe_files(tiny_path())
    assert os.listdir(tmp_path) == ["there"] and (tmp_path / "there").stat() == before


@LINUX
def test_it_has_no_terminal_to_type_into(
    tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    confined(monkeypatch, "    import os\n    assert os.getsid(0) == os.getpid()")
    probe_files(tiny_path())


@LINUX
def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import subprocess, sys, os\n"
        "inner = 'from capt_local.hardening import confine; confine(); "
        "import time; print(1, flush=True); time.sleep(60)'\n"
        "other = subprocess.Popen([sys.executable, '-c', inner], stdout=subprocess.PIPE)\n"
        "other.stdout.readline(); print(other.pid, flush=True); os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pid, until = int(done.stdout), time.monotonic() + 10
    while _lives(pid):
        assert time.monotonic() < until
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return not re.search(r"\) Z", state)


def test_a_model_of_a_thousand_tensors_on_a_busy_machine(tmp_path: Path) -> None:
    """llama.cpp's own check starts a thread for each tensor; their stacks are not the model."""
    path = tiny_gguf(tmp_path / "deep.gguf", seed=1, layers=111)
    assert len(read_header(path).tensors) == 1002
    with busy(4):
        probe_files(path)
        probe_files(smollm2())


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that leave the processor no time."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in burners:
            one.kill()
            one.wait()


def test_of_files_that_others_may_write_the_digest_of_what_was_loaded(
    tiny_path: TinyPath, tmp_path: Path
) -> None:
    path, adapter = tmp_path / "model.gguf", tiny_adapter(tmp_path / "lora.gguf", seed=2)
    path.write_bytes(tiny_path().read_bytes())
    path.chmod(0o666)
    found = probe_files(path, [adapter])
    assert found == {path: hashlib.sha256(path.read_bytes()).hexdigest()}
    bad = tiny_gguf(tmp_path / "bad.gguf", seed=1, nan=True)
    bad.chmod(0o666)
    with pytest.raises(ModelError, match=r"^bad\.gguf is damaged: a tensor has invalid data"):
        probe_files(bad)


@LINUX
def test_where_the_list_is_refused_no_file_is_opened(
    tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import capt_local.llama.probe as probe; probe.confine = lambda: False; probe.serve()"
    monkeypatch.setattr(
        probe_module, "_PROGRAM", f"import sys; sys.path.insert(0, sys.argv[1]); {code}"
    )
    with pytest.raises(UsageError, match="does not let a process give up system calls"):
        probe_files(tiny_path())


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root")
def test_as_root_it_keeps_no_right_but_reading(
    tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 1 << 2
    open(f"/proc/{__import__('os').getppid()}/mem", "rb")
"""
    confined(monkeypatch, code)
    with pytest.raises(ModelError, match="PermissionError"):
        probe_files(tiny_path())


@LINUX
def test_the_numbers_of_system_calls_are_those_of_the_kernel() -> None:
    """Where its headers are installed: those of x86-64, and the common ones that arm64 has."""
    for column, header in enumerate(("x86_64-linux-gnu/asm/unistd_64.h", "asm-generic/unistd.h")):
        path = Path("/usr/include") / header
        if not path.exists():
            pytest.skip("no headers of the kernel")
        found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())
        known = {name: int(number) for name, number in found}
        known.setdefault("newfstatat", known.get("fstatat", 0))
        for name, numbers in hardening._ALLOWED.items():
            assert numbers[column] == known.get(name), name
