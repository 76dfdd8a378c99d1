"""What goes between a run and its worker, and how a worker ends."""

from __future__ import annotations

import datetime
import io
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from capt_local.batch.supervisor import (
    Death,
    WireMessage,
    WorkerConfig,
    WorkerProcess,
    pack,
    receive,
    send,
    worker_command,
)
from capt_local.bundles import store
from capt_local.errors import ModelError


def test_messages_come_whole_or_not_at_all() -> None:
    stream = io.BytesIO()
    messages = [{"request": 1, "prompt": "a\u2028\u00e4 \U0001f600"}, {}, {"end": True}]
    for message in messages:
        send(stream, message)
    data = stream.getvalue()
    reader = io.BytesIO(data)
    assert [receive(reader) for _ in messages] == messages
    assert receive(reader) is None
    first = 4 + int.from_bytes(data[:4], "big")
    for end in range(first):
        assert receive(io.BytesIO(data[:end])) is None
    assert receive(io.BytesIO(b"\xff\xff\xff\xff")) is None


def events(worker: WorkerProcess, seconds: float = 60.0) -> list[WireMessage | Death]:
    """All that it says until it has ended."""
    found: list[WireMessage | Death] = []
    until = time.monotonic() + seconds
    while not (found and isinstance(found[-1], Death)):
        assert time.monotonic() < until
        event = worker.poll(0.2)
        found += [] if event is None else [event]
    return found


@pytest.fixture(scope="module")
def demo() -> dict[str, Any]:
    opened: dict[str, Any] = pack(WorkerConfig(store.find("demo"), date=datetime.date(2026, 1, 2)))
    return opened


def answered(demo: dict[str, Any], prompts: dict[int, str], **more: Any) -> list[Any]:
    """All that a worker says that has these records."""
    worker = WorkerProcess(worker_command())
    options = {**demo["options"], "max_tokens": 3, "sample": {"temperature": 1.0}}
    how = {"options": options, "load": {"threads": 1, "context": 256}, **more}
    worker.send({"load": {**demo, **how}})
    for key, prompt in prompts.items():
        worker.send({"request": key, "prompt": prompt, "seed": key, "adapter_scales": None})
    worker.send({"end": True})
    return events(worker)


def test_a_real_worker_answers_and_ends(demo: dict[str, Any]) -> None:
    found = answered(demo, {7: "What is fever?", 8: " "})
    kinds = [next(iter(event)) for event in found[:-1]]
    assert kinds[0] == "hello" and "loading" in kinds
    told = {next(iter(event)): event for event in found[:-1]}
    assert told["hello"]["hello"]["versions"]["llama_cpp_python"] == "0.3.36"
    assert set(told["ready"]["ready"]["models"]) == {"target", "expert", "base"}
    assert told["answered"]["answered"] == 7
    assert told["answered"]["answer"]["usage"]["completion_tokens"] <= 3
    assert told["failed"]["failed"] == 8 and told["failed"]["code"] == "invalid_request"
    assert found[-1] == Death("it ended with exit code 0")


def test_the_candidates_of_several_records_share_the_slots(demo: dict[str, Any]) -> None:
    found = answered(demo, dict.fromkeys((1, 2), "What is fever?"), parallel=4, best_of=3)
    kinds = [next(iter(each)) for each in found[:-1]]
    assert [kind for kind in kinds if kind in ("begun", "answered")] == [
        "begun", "begun", "answered", "answered"
    ]  # fmt: skip


def test_a_model_that_is_not_the_right_one_is_told(demo: dict[str, Any]) -> None:
    bundle = json.loads(json.dumps(demo["bundle"]))
    bundle["models"]["target"]["sha256"] = "0" * 64
    worker = WorkerProcess(worker_command())
    worker.send({"load": {**demo, "bundle": bundle}})
    last = events(worker)[-1]
    assert isinstance(last, Death)
    assert isinstance(last.at_start(), ModelError)
    assert "SHA-256" in str(last.at_start())


def test_a_worker_imports_nothing_from_the_folder_that_it_is_started_in(tmp_path: Path) -> None:
    """Named in docs/threat-model.md: such a folder may be one of notes that others write."""
    for name in ("json", "struct", "typing", "capt_local"):
        (tmp_path / f"{name}.py").write_text("import posix; posix._exit(99)")
    process = subprocess.Popen(
        worker_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdin is not None and process.stdout is not None
    message = receive(process.stdout)
    assert message is not None and "hello" in message
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    process.stdout.close()
