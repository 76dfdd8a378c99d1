"""What goes between a run and its worker, and how a worker ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from capt_local.batch import ipc
from capt_local.batch.ipc import WorkerConfig, pack
from capt_local.batch.supervisor import Death, WorkerProcess, worker_command
from capt_local.bundles import store
from capt_local.errors import MemoryShortage, ModelError, WorkerFailed

ROOT = Path(__file__).resolve().parents[2]
CANARY = "zyzzyva-canary"


def test_messages_come_whole_or_not_at_all() -> None:
    stream = io.BytesIO()
    messages = [{"request": 1, "prompt": "a\u2028\u00e4 \U0001f600"}, {}, {"end": True}]
    for message in messages:
        ipc.send(stream, message)
    data = stream.getvalue()
    reader = io.BytesIO(data)
    assert [ipc.receive(reader) for _ in messages] == messages
    assert ipc.receive(reader) is None
    first = 4 + int.from_bytes(data[:4], "big")
    for end in range(first):
        assert ipc.receive(io.BytesIO(data[:end])) is None
    assert ipc.receive(io.BytesIO(b"\xff\xff\xff\xff")) is None


def events(worker: WorkerProcess, seconds: float = 60.0) -> list[ipc.Message | Death]:
    """All that it says until it has ended."""
    found: list[ipc.Message | Death] = []
    until = time.monotonic() + seconds
    while not (found and isinstance(found[-1], Death)):
        assert time.monotonic() < until
        event = worker.poll(0.2)
        found += [] if event is None else [event]
    return found


@pytest.fixture(scope="module")
def demo() -> dict[str, object]:
    opened: dict[str, object] = pack(WorkerConfig(store.find("demo"), date="2026-01-02"))
    return opened


def test_a_real_worker_answers_and_ends(demo: dict[str, object]) -> None:
    worker = WorkerProcess(worker_command())
    worker.send({"load": {**demo, "load": {"threads": 1, "context": 256}}})
    settings = {"max_tokens": 3, "seed": 1}
    worker.send({"request": 7, "prompt": "What is fever?", "settings": settings})
    worker.send({"request": 8, "prompt": " ", "settings": settings})
    worker.send({"end": True})
    found = events(worker)
    kinds = [next(iter(event)) for event in found[:-1] if not isinstance(event, Death)]
    assert kinds[0] == "hello" and "loading" in kinds
    told = {next(iter(event)): event for event in found[:-1] if not isinstance(event, Death)}
    assert told["hello"]["hello"]["versions"]["llama_cpp_python"] == "0.3.36"
    assert set(told["ready"]["ready"]["models"]) == {"target", "expert", "base"}
    assert told["answered"]["answered"] == 7
    assert told["answered"]["answer"]["usage"]["completion_tokens"] <= 3
    assert told["failed"]["failed"] == 8 and told["failed"]["code"] == "invalid_request"
    assert found[-1] == Death("it ended with exit code 0")


def test_a_model_that_is_not_the_right_one_is_told(demo: dict[str, object]) -> None:
    bundle = json.loads(json.dumps(demo["bundle"]))
    bundle["models"]["target"]["sha256"] = "0" * 64
    worker = WorkerProcess(worker_command())
    worker.send({"load": {**demo, "bundle": bundle}})
    last = events(worker)[-1]
    assert isinstance(last, Death)
    assert isinstance(last.at_start(), ModelError)
    assert "SHA-256" in str(last.at_start())


def test_nothing_of_a_run_is_in_the_arguments_of_its_worker() -> None:
    *program, code, path = worker_command()
    assert program == [sys.executable, "-P", "-c"]
    assert json.loads(path) == [part or str(Path.cwd()) for part in sys.path]
    assert "worker" in code


def test_a_worker_imports_nothing_from_the_folder_that_it_is_started_in(tmp_path: Path) -> None:
    for name in ("json", "struct", "typing", "capt_local"):
        (tmp_path / f"{name}.py").write_text("import posix; posix._exit(99)")
    process = subprocess.Popen(
        worker_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdin is not None and process.stdout is not None
    message = ipc.receive(process.stdout)
    assert message is not None and "hello" in message
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    process.stdout.close()


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", MemoryShortage, "SIGKILL"),
        ("os.abort()", WorkerFailed, "an assertion of the engine"),
        ("os.kill(os.getpid(), signal.SIGBUS)", WorkerFailed, "mapped"),
        ("sys.exit(3)", WorkerFailed, "exit code 3"),
        (f"raise TypeError('{CANARY}')", WorkerFailed, "exit code 1"),
    ],
)
def test_the_cause_of_a_death_is_told(code: str, kind: type[Exception], told: str) -> None:
    worker = WorkerProcess([sys.executable, "-c", f"import os, signal, sys; {code}"])
    (death,) = events(worker)
    assert isinstance(death, Death)
    error = death.at_start()
    assert type(error) is kind and told in str(error) and CANARY not in str(error)
    assert death.killed == (kind is MemoryShortage)


def test_a_worker_ends_with_its_run_and_ignores_the_terminal() -> None:
    process = subprocess.Popen(
        worker_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None and process.stdout is not None
    message = ipc.receive(process.stdout)
    assert message is not None and "hello" in message
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    time.sleep(0.3)
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    process.stdout.close()


@pytest.mark.parametrize("stopped", [False, True])
def test_nobody_waits_for_a_worker_that_reads_nothing(stopped: bool) -> None:
    worker = WorkerProcess([sys.executable, "-c", "import time; time.sleep(600)"])
    if stopped:
        os.kill(worker.pid, signal.SIGSTOP)
    began = time.monotonic()
    for _ in range(4):
        worker.send({"request": 1, "prompt": "x" * (8 << 20)})
    assert worker.poll(0.05) is None and not worker.ended(0.05)
    worker.kill()
    assert worker.ended(0) and time.monotonic() - began < 20
    worker.kill()
    worker.send({"request": 2})


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked in Linux's way")
def test_a_worker_is_private_and_the_first_to_go() -> None:
    code = (
        "import ctypes, resource; from capt_local.llama.hardening import *; be_first_to_go(); "
        "keep_memory_private(); print(open('/proc/self/oom_score_adj').read().strip(), "
        "resource.getrlimit(resource.RLIMIT_CORE)[0], ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["500", "0", "0"]
