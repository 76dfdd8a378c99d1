"""Supervision of worker processes: each record gets an answer or a failure, whatever happens.

Messages between a run and a worker are length-prefixed JSON objects: unlike pickle, they cannot
execute code on the other side. Patient text goes through the pipe only, never through a file.

When a worker dies, the records that it had begun become suspects: a new worker gets them one at a
time, which identifies the record that kills workers. A record that kills two workers on its own
fails, and the others continue. A worker that starts, loads or has records and sends nothing for too
long is killed and handled like any other death.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

import msgspec

from capt_local.batch.output import Failure
from capt_local.bundles.manifest import Bundle
from capt_local.bundles.verify import Check
from capt_local.decoding.options import GenerateOptions
from capt_local.errors import (
    CaptError,
    MemoryShortage,
    ModelError,
    NumericalError,
    UsageError,
    WorkerFailed,
)
from capt_local.llama.options import LoadOptions

WireMessage = dict[str, Any]
_HEAD = struct.Struct(">I")
_LARGEST = 1 << 30
DEATHS_PER_RECORD = 2  # of workers with one record alone, before it fails
DEATHS_IN_A_ROW = 10  # without an answer between them; then the cause is not the records
# Records sent for each that is answered at once: with only one, the worker would wait for a record
# while its answers wait to be written.
_WINDOW = 2
LOAD_TIMEOUT = 600.0  # seconds; parts of loading report no progress
_END_SECONDS = 10.0  # for a process that has closed its pipes to end
_KINDS = {kind.__name__: kind for kind in (MemoryShortage, ModelError, NumericalError, UsageError)}
# The worker runs with the module path of the run's own interpreter, so both are the same program.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from capt_local.batch.worker import main; main()"
)


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Which models a worker loads, how, and what all records of a run share.

    Attributes:
        bundle: with the digests of the first start, so that a restarted worker cannot load
            other files.
        parallel: how many answers are made at once.
        best_of: answers to each record, of which the best counts by the scorer.
    """

    bundle: Bundle
    options: GenerateOptions = field(default_factory=GenerateOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    date: datetime.date | None = None
    check: Check = Check.CACHED
    raw: bool = False
    parallel: int = 1
    best_of: int = 1
    scorer: str | None = None


def send(stream: IO[bytes], message: WireMessage) -> None:
    """Sends a message. Raises OSError if the other side has gone."""
    data = msgspec.json.encode(message)
    stream.write(_HEAD.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> WireMessage | None:
    """The next message; None at the end of the stream, also inside a message."""
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size or (size := _HEAD.unpack(head)[0]) > _LARGEST:
        return None
    data = stream.read(size)
    message = msgspec.json.decode(data) if len(data) == size else None
    return message if isinstance(message, dict) else None


def pack(value: object) -> Any:
    """A dataclass as JSON-compatible values; paths as text."""
    return msgspec.to_builtins(value, enc_hook=str)


@dataclass(frozen=True, slots=True)
class Death:
    """A worker has ended.

    Attributes:
        cause: for a sentence: "it was killed (SIGKILL), probably because memory ran out".
        killed, hung: whether memory is the likely reason, or that it reported no progress.
        error: the error that it reported before it ended, or None.
    """

    cause: str
    killed: bool = False
    hung: bool = False
    error: CaptError | None = None

    @classmethod
    def by_code(cls, code: int) -> Death:
        """The death of a worker that sent no error, by its exit code."""
        if code >= 0:
            return cls(f"it ended with exit code {code}")
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        if name == "SIGKILL":
            return cls(f"it was killed ({name}), probably because memory ran out", killed=True)
        if name == "SIGILL":
            name += ": this processor lacks an instruction that the engine was built with"
        return cls(f"it ended by {name}")

    def at_start(self) -> CaptError:
        """The error to raise if the worker died before it could answer anything."""
        if self.error is not None:
            return self.error
        if self.killed:
            return MemoryShortage(
                f"The models could not be loaded: the worker process died, {self.cause}. Use a "
                "smaller --ctx-size, --parallel or smaller models."
            )
        return WorkerFailed(f"The worker process died while it loaded the models: {self.cause}.")

    def failure(self) -> Failure:
        """The failure of the record that killed the worker."""
        if self.hung:
            return Failure(
                "timed_out",
                f"The worker process was ended twice: with this record alone, {self.cause}.",
            )
        return Failure(
            "worker_died",
            f"The worker process died twice with this record alone; last, {self.cause}.",
        )


@dataclass(frozen=True, slots=True)
class RecordOutcome:
    """The outcome of a record: `answer` (as `report.json.answer_object`) or `failure`."""

    key: int
    answer: dict[str, Any] | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class WorkerEvent:
    """Another event of a worker: at most one field is set.

    Attributes:
        hello: a worker's facts about its machine; it has loaded nothing yet.
        loading: a role, and the share of its file that is checked, then loaded.
        ready: facts about the loaded models.
        died: why a worker died that is now replaced.
    """

    hello: dict[str, Any] | None = None
    loading: tuple[str, float] | None = None
    ready: dict[str, Any] | None = None
    died: str = ""


class Process(Protocol):
    """A running worker: a `WorkerProcess`, or an actor of Ray that holds one."""

    def send(self, message: WireMessage) -> None: ...
    def poll(self, seconds: float) -> WireMessage | Death | None: ...
    def kill(self) -> None: ...


def worker_command() -> list[str]:
    """The command of a worker. Other accounts can see it, so it holds nothing of the run."""
    paths = json.dumps([path or os.getcwd() for path in sys.path])
    # -P: or a json.py in the folder of the notes would be imported before the path is set.
    return [sys.executable, "-P", "-c", _START, paths]


class WorkerProcess:
    """A running worker. `kill` it at the end.

    Args:
        command: that starts it.
        show: whether what its libraries print is shown, text of patients included.
    """

    def __init__(self, command: Sequence[str], *, show: bool = False) -> None:
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if show else subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C at a terminal is for the run
            )
        except OSError as error:
            reason = error.strerror or "unknown"
            raise WorkerFailed(f"The worker process cannot be started: {reason}.") from None
        self.pid = self._process.pid
        self._received: queue.SimpleQueue[WireMessage | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[WireMessage | None] = queue.SimpleQueue()
        # Each pipe has a thread of its own, so that nothing else waits for a worker that hangs.
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._listen, self._write)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, message: WireMessage) -> None:
        """Sends a message without waiting; one to a worker that has died is lost."""
        self._outbox.put(message)

    def poll(self, seconds: float) -> WireMessage | Death | None:
        """Its next message or its death; None after `seconds` without one."""
        try:
            message = self._received.get(timeout=seconds)
        except queue.Empty:
            return None
        if message is not None and "fatal" not in message:
            return message
        code = self._process.returncode if self._ended() else None
        self.kill()
        if message is not None:
            kind, text = str(message["fatal"]), str(message.get("message"))
            if kind == "unexpected":
                text = f"The worker process stopped with an unexpected {text}. This is a defect."
            return Death(text.rstrip("."), error=_KINDS.get(kind, WorkerFailed)(text))
        return Death("it closed its pipe") if code is None else Death.by_code(code)

    def kill(self) -> None:
        """Ends the process at once; safe to call again.

        One that hangs in the kernel (a network disk that is gone) is not waited for.
        """
        self._process.kill()
        self._outbox.put(None)
        ended = self._ended()
        for thread in self._threads:
            thread.join(_END_SECONDS if ended else 0)

    def _ended(self) -> bool:
        """Whether it has ended, waiting briefly for it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        return self._process.returncode is not None

    def _listen(self) -> None:
        assert self._process.stdout is not None
        message: WireMessage | None = {}
        with self._process.stdout as stream:
            while message is not None:
                try:
                    message = receive(stream)
                except (OSError, ValueError):  # half a message
                    message = None
                self._received.put(message)

    def _write(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as stream:
            while (message := self._outbox.get()) is not None:
                send(stream, message)


class WorkerSupervisor:
    """Runs one worker process after the other; the first is started and loads nothing yet.

    `timeout` is how many seconds a worker that has records may send nothing before it is ended; at
    least 600 while it starts and loads models, since parts of that report no progress.
    """

    def __init__(self, start: Callable[[], Process], timeout: float) -> None:
        self._start, self._timeout = start, timeout
        self._worker = start()
        self._load: WireMessage = {}
        self._window = 0
        # Of the current worker: whether it has loaded the models, has died, was sent "end".
        self._ready = self._dead = self._end_sent = False
        self._ends = False  # whether there are no further records
        self._waiting: deque[tuple[int, WireMessage]] = deque()
        self._sent: dict[int, WireMessage] = {}
        self._begun: set[int] = set()
        self._suspects: set[int] = set()
        self._deaths: Counter[int] = Counter()
        self._deaths_in_a_row = 0
        self._silent = 0.0

    def load(self, config: WorkerConfig) -> None:
        self._load, self._window = {"load": pack(config)}, _WINDOW * config.parallel
        self._silent = 0.0
        self._worker.send(self._load)

    @property
    def accepts_more(self) -> bool:
        """Whether another record may be put."""
        return self.records < self._window

    @property
    def records(self) -> int:
        """The number of records without an outcome."""
        return len(self._waiting) + len(self._sent)

    def put(self, key: int, request: WireMessage) -> None:
        self._waiting.append((key, request))
        self._feed()

    def close_input(self) -> None:
        """Marks the input as complete: the worker ends after the last record."""
        self._ends = True
        self._feed()

    def poll(self, seconds: float) -> RecordOutcome | WorkerEvent | None:
        """The next outcome or event; None after `seconds` without one.

        Raises:
            CaptError: a worker cannot be started or cannot load the models, or workers die
                repeatedly.
        """
        if self._dead:
            self._worker.kill()
            self._worker, self._dead = self._start(), False
            self._worker.send(self._load)
        left = seconds
        while (message := self._worker.poll(left)) is not None:
            self._silent, left = 0.0, 0.0
            event = self._died(message) if isinstance(message, Death) else self._handle(message)
            if event is not None:
                return event
        # Only time spent waiting for messages counts.
        self._silent += left
        limit = self._timeout if self._sent else math.inf
        if self._silent < (limit if self._ready else max(self._timeout, LOAD_TIMEOUT)):
            return None
        self._worker.kill()
        return self._died(Death(f"it reported no progress for {self._silent:.0f} s", hung=True))

    def kill(self) -> None:
        """Ends the worker; its records are dropped."""
        self._worker.kill()

    def _handle(self, message: WireMessage) -> RecordOutcome | WorkerEvent | None:
        if "hello" in message:
            return WorkerEvent(hello=message["hello"])
        if "loading" in message:
            return WorkerEvent(loading=(message["loading"], message["share"]))
        if "ready" in message:
            self._ready = True
            self._feed()
            return WorkerEvent(ready=message["ready"])
        if "begun" in message:
            self._begun.add(message["begun"])
        if (key := message.get("answered", message.get("failed"))) is None:
            return None
        self._forget(key)
        self._deaths_in_a_row = 0
        self._feed()
        if "answered" in message:
            return RecordOutcome(key, answer=message["answer"])
        return RecordOutcome(key, failure=Failure(message["code"], message["message"]))

    def _forget(self, key: int) -> None:
        self._sent.pop(key, None)
        self._deaths.pop(key, None)
        self._begun.discard(key)
        self._suspects.discard(key)

    def _died(self, death: Death) -> RecordOutcome | WorkerEvent:
        """Requeues or fails the records of a dead worker; the next `poll` replaces it."""
        begun, self._begun = self._begun, set()
        self._dead, self._silent = True, 0.0
        if not self._ready or (death.error is not None and not begun):
            raise death.at_start()  # a model or memory is the reason
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= DEATHS_IN_A_ROW:
            raise WorkerFailed(
                f"The worker process died {DEATHS_IN_A_ROW} times in a row, so the cause is not "
                f"the records; last, {death.cause}."
            )
        self._suspects.update(begun)
        failed = None
        if len(begun) == 1:
            (alone,) = begun
            self._deaths[alone] += 1
            if self._deaths[alone] >= DEATHS_PER_RECORD:
                failed = alone
                self._forget(alone)
        # Requeue the sent records in front: suspects first, then those that had not begun.
        sent = sorted(self._sent.items(), key=lambda item: item[0] not in self._suspects)
        self._sent.clear()
        self._waiting.extendleft(reversed(sent))
        self._ready = self._end_sent = False
        if failed is None:
            return WorkerEvent(died=death.cause)
        return RecordOutcome(failed, failure=death.failure())

    def _feed(self) -> None:
        """Sends queued records up to the window; suspects one at a time."""
        if not self._ready:
            return
        limit = 1 if self._suspects else self._window
        while self._waiting and len(self._sent) < limit:
            key, request = self._waiting.popleft()
            self._sent[key] = request
            self._worker.send({**request, "alone": True} if self._suspects else request)
        if self._ends and not self._waiting and not self._end_sent:
            self._end_sent = True
            self._worker.send({"end": True})


class Workers:
    """The workers of a run: one, or as many as Ray has actors; see `WorkerSupervisor`."""

    def __init__(
        self, start: Callable[[], Process], *, count: int = 1, timeout: float = math.inf
    ) -> None:
        self._all = [WorkerSupervisor(start, timeout) for _ in range(count)]
        self._facts: list[dict[str, Any]] = []

    def hello(self, seconds: float) -> dict[str, Any] | None:
        """The facts about their machines, which must have the same build; None until all have come.

        Raises:
            CaptError: a worker cannot start, or the builds differ.
        """
        event = self._all[len(self._facts)].poll(seconds)
        if isinstance(event, WorkerEvent) and event.hello is not None:
            self._facts.append(event.hello)
        if len(self._facts) < len(self._all):
            return None
        first = self._facts[0]
        for facts in self._facts[1:]:
            if any(facts[name] != first[name] for name in ("versions", "build")):
                raise UsageError(
                    "The machines of the Ray cluster have different versions or builds of "
                    "capt-local or llama.cpp, which may answer differently."
                )
        if not self._all[1:]:
            return first
        devices = sorted({device for facts in self._facts for device in facts["devices"]})
        return {**first, "devices": devices, "ray_actors": len(self._all)}

    def load(self, config: WorkerConfig) -> None:
        for each in self._all:
            each.load(config)

    @property
    def accepts_more(self) -> bool:
        return any(each.accepts_more for each in self._all)

    @property
    def idle(self) -> bool:
        """Whether each record has an outcome."""
        return not any(each.records for each in self._all)

    def put(self, key: int, request: WireMessage) -> None:
        """Gives a record to the worker that has fewest."""
        min(self._all, key=lambda each: each.records).put(key, request)

    def close_input(self) -> None:
        for each in self._all:
            each.close_input()

    def poll(self, seconds: float) -> RecordOutcome | WorkerEvent | None:
        self._all.append(self._all.pop(0))  # in turn, so that none waits behind the others
        busy = [each for each in self._all if each.records]
        for each in busy:
            if (event := each.poll(seconds / len(busy))) is not None:
                return event
        return None

    def kill(self) -> None:
        for each in self._all:
            each.kill()
