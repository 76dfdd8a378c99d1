"""The process that looks at model files first: what it takes, and what it cannot do."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from capt_local.engine import examine
from capt_local.engine.examine import Examiner
from capt_local.errors import Cancelled, MemoryShortage, ModelError
from tests.tiny_models import tiny_adapter, tiny_gguf

TinyPath = Callable[..., Path]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process give it up")
START = "import sys; sys.path.insert(0, sys.argv[1]); line = sys.stdin.readline(); "


def look(path: Path) -> None:
    with Examiner() as examiner:
        examiner.look(path)


def program(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Lets the other process do something else."""
    monkeypatch.setattr(examine, "_PROGRAM", START + code)


def confined(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Lets it do something else when it has given up what it can."""
    told = f"""
from capt_local.engine.confined import confine
confine()
try:
{code}
except OSError as error:
    print("refused: it was not permitted,", type(error).__name__, error.errno)
else:
    print("passed")
"""
    program(monkeypatch, f"exec({told!r})")


def test_one_process_takes_several_files(tiny_path: TinyPath, tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "lora.gguf", seed=2)
    with Examiner() as examiner:
        for flavour in ("bpe", "spm"):
            examiner.look(tiny_path(flavour))
        examiner.look(tiny_path(), [adapter])
        process = examiner._process
        with pytest.raises(ModelError, match=r"nan\.gguf"):
            examiner.look(tiny_gguf(tmp_path / "nan.gguf", seed=1, nan=True))
        assert examiner._process is process is not None and examiner.ended == 0


def test_recurrent_models_and_windows_are_taken(tiny_path: TinyPath) -> None:
    with Examiner() as examiner:
        examiner.look(tiny_path("bpe", "mamba"))
        examiner.look(tiny_path("bpe", "gemma3"))


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
        look(tiny_path())


def test_after_an_end_the_next_file_has_a_process_again(
    tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = examine._PROGRAM
    with Examiner() as examiner:
        program(monkeypatch, "import os; os.abort()")
        with pytest.raises(ModelError, match="ended the process"):
            examiner.look(tiny_path())
        monkeypatch.setattr(examine, "_PROGRAM", good)
        examiner.look(tiny_path())
        assert examiner.ended == 1


def test_one_that_hangs_is_ended(tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(examine, "_SECONDS", 0.5)
    started = time.monotonic()
    with (
        Examiner() as examiner,
        pytest.raises(ModelError, match=r"bpe\.gguf kept the process .* busy for more than"),
    ):
        examiner.look(tiny_path())
    assert time.monotonic() - started < 10


def test_waiting_can_be_stopped(tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch, "import time; time.sleep(60)")
    asked = []

    def waiting() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise Cancelled("stopped")

    with Examiner() as examiner:
        with pytest.raises(Cancelled):
            examiner.look(tiny_path(), (), waiting)
        assert examiner._process is None


def test_more_memory_than_the_header_explains_is_not_there(
    tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux limits the memory of a process")
    code = """
import capt_local.engine.examining as examining
examining.look = lambda *_: (examining.allow_memory(1 << 20), bytes(1 << 28))
examining.confine = lambda: None
import io, os
r, w = os.pipe(); os.write(w, line.encode()); os.close(w); os.dup2(r, 0)
examining.main()
"""
    program(monkeypatch, f"exec({code!r})")
    with pytest.raises(MemoryShortage, match=r"bpe\.gguf takes more memory than its header"):
        look(tiny_path())


@LINUX
@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket()",
        "import socket; socket.socket(socket.AF_UNIX)",
        "import os; os.execv('/bin/true', ['true'])",
        "open({place!r} + '/new', 'w')",
        "open({place!r} + '/there', 'r+')",
        "import os; os.truncate({place!r} + '/there', 0)",
        "import os; os.unlink({place!r} + '/there')",
        "import os; os.rename({place!r} + '/there', {place!r} + '/other')",
        "import os; os.chmod({place!r} + '/there', 0o777)",
        "import os; os.mkdir({place!r} + '/folder')",
        "import os; os.symlink('/', {place!r} + '/link')",
        "import os; os.kill(os.getppid(), 0)",
        "import os; os.kill(os.getpid(), 0)",
        "import os, signal; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)",
        "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))",
        "import os; os.mkfifo({place!r} + '/pipe')",
        "import os, stat; os.mknod({place!r} + '/node', stat.S_IFREG)",
        "import os; os.utime({place!r} + '/there', (0, 0))",
        "import os; os.utime({place!r} + '/there', (0, 0), follow_symlinks=False)",
        "import os; os.setxattr({place!r} + '/there', 'user.a', b'b')",
        "import os; os.setxattr({place!r} + '/there', 'user.a', b'b', follow_symlinks=False)",
        "import os; os.setxattr(os.open({place!r} + '/there', os.O_RDONLY), 'user.a', b'b')",
        "import os; os.removexattr({place!r} + '/there', 'user.a')",
        "import fcntl; fcntl.ioctl(0, 0x5412, b'x')",
    ],
)
def test_it_cannot_reach_beyond_itself(
    tiny_path: TinyPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    (tmp_path / "there").write_text("content")
    before = (tmp_path / "there").stat()
    confined(monkeypatch, "    " + code.format(place=str(tmp_path)))
    with pytest.raises(ModelError, match="it was not permitted, PermissionError 1"):
        look(tiny_path())
    assert os.listdir(tmp_path) == ["there"] and (tmp_path / "there").stat() == before


@LINUX
@pytest.mark.parametrize(
    "call",
    [
        ("kill", 62, 129), ("tkill", 200, 130), ("tgkill", 234, 131),
        ("rt_sigqueueinfo", 129, 138), ("rt_tgsigqueueinfo", 297, 240),
        ("pidfd_getfd", 438, 438), ("fchmodat2", 452, 452),
    ],
    ids=lambda call: call[0],
)  # fmt: skip
def test_what_python_has_no_name_for_is_forbidden_too(
    tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch, call: tuple[str, int, int]
) -> None:
    number = call[2] if platform.machine() == "aarch64" else call[1]
    code = f"""
    import ctypes, os
    c, parent = ctypes.CDLL(None, use_errno=True), os.getppid()
    if c.syscall({number}, parent, parent, 0, 0):
        raise OSError(ctypes.get_errno(), "")"""
    confined(monkeypatch, code)
    with pytest.raises(ModelError, match="it was not permitted, PermissionError 1"):
        look(tiny_path())


@LINUX
def test_an_abort_of_the_confined_process_is_told_as_one(
    tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    confined(monkeypatch, "    import os; os.abort()")
    with pytest.raises(ModelError, match=r"ended the process that looked at it \(code -6\)"):
        look(tiny_path())


@LINUX
def test_it_has_no_terminal_to_type_into(
    tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    confined(monkeypatch, "    import os\n    assert os.getsid(0) == os.getpid()")
    look(tiny_path())


@LINUX
def test_whether_the_kernel_forbids_calls_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert examine.calls_are_forbidden()
    for code in ("import sys; sys.exit(1)", "1 / 0"):
        monkeypatch.setattr(examine, "_TRIAL", code)
        assert not examine.calls_are_forbidden()


@LINUX
def test_it_may_read_and_has_no_core_dump_and_no_new_rights(
    tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
    import resource
    assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == (0, 0)
    status = open("/proc/self/status").read()
    assert "NoNewPrivs:\\t1" in status and "Seccomp:\\t2" in status
"""
    confined(monkeypatch, code)
    look(tiny_path())


@LINUX
def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import subprocess, sys, os\n"
        "inner = 'from capt_local.engine.confined import confine; confine(); "
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


def test_what_is_plainly_broken_starts_no_process(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"no model")
    with Examiner() as examiner:
        with pytest.raises(ModelError, match="not a GGUF"):
            examiner.look(tmp_path / "a.gguf")
        assert examiner._process is None
