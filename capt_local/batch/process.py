"""The worker as the run sees it: a process that is started, told things, listened to and ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from capt_local.batch import wire
from capt_local.errors import (
    CaptError,
    MemoryShortage,
    ModelError,
    NumericalError,
    UsageError,
    WorkerFailed,
)

_KINDS = {kind.__name__: kind for kind in (MemoryShortage, ModelError, NumericalError, UsageError)}
_PATIENCE = 10.0  # seconds for a process that has closed its pipes to end
# The path of the run's own interpreter is the worker's, so both run the same program.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from capt_local.batch.worker import main; main()"
)


@dataclass(frozen=True, slots=True)
class Death:
    """The worker has ended.

    Attributes:
        cause: for a sentence: "it was killed (SIGKILL), probably because memory ran out".
        killed: whether memory is the likely reason.
        hung: whether it was ended because it did nothing any more.
        error: what it said itself; None where it had no time to.
    """

    cause: str
    killed: bool = False
    hung: bool = False
    error: CaptError | None = None

    def at_start(self) -> CaptError:
        """What to raise where the worker died before it could answer anything."""
        if self.error is not None:
            return self.error
        if self.killed:
            return MemoryShortage(
                f"The models could not be loaded: the worker process died, {self.cause}. Use a "
                "smaller --ctx-size, --parallel or smaller models."
            )
        return WorkerFailed(f"The worker process died while it loaded the models: {self.cause}.")


def worker_command() -> list[str]:
    """What starts a worker. Other accounts can see it, so there is nothing of the run in it."""
    return [sys.executable, "-c", _START, json.dumps([path or os.getcwd() for path in sys.path])]


class WorkerProcess:
    """A worker that runs. `kill` it at the end.

    Args:
        command: starts it.
        show: whether what it and its libraries print is shown, text of patients included.
    """

    def __init__(self, command: Sequence[str], *, show: bool = False) -> None:
        """Starts the process."""
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if show else subprocess.DEVNULL,
                # Ctrl-C at a terminal is for the run.
                start_new_session=os.name == "posix",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            reason = error.strerror or "unknown"
            raise WorkerFailed(f"The worker process cannot be started: {reason}.") from None
        self._events: queue.SimpleQueue[wire.Message | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[wire.Message | None] = queue.SimpleQueue()
        self._fatal: wire.Message | None = None
        # Each pipe has a thread of its own, which also closes it: where a worker hangs, nobody
        # waits for it but they.
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._listen, self._write)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def tell(self, message: wire.Message) -> None:
        """Sends a message, without waiting for the worker to read it.

        One to a worker that has died is lost; `event` tells of the death.
        """
        self._outbox.put(message)

    def event(self, seconds: float) -> wire.Message | Death | None:
        """What it says next; None where it says nothing for so long."""
        try:
            message = self._events.get(timeout=seconds)
        except queue.Empty:
            return None
        if message is None:
            return self._death()
        if "fatal" in message:
            self._fatal = message
            return self.event(_PATIENCE)
        return message

    def ended(self, seconds: float) -> bool:
        """Whether it has ended, or does so in that time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode is not None

    def kill(self) -> None:
        """Ends the process at once; safe to call again.

        One that hangs in the kernel (a network disk that is gone) ends when that lets it: it is
        not waited for.
        """
        self._process.kill()
        self._outbox.put(None)
        self.ended(_PATIENCE)
        for thread in self._threads:
            thread.join(_PATIENCE if self._process.returncode is not None else 0)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        message: wire.Message | None = {}
        with self._process.stdout as stream:
            while message is not None:
                try:
                    message = wire.receive(stream)
                except (OSError, ValueError):  # half a message
                    message = None
                self._events.put(message)

    def _write(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as stream:
            while (message := self._outbox.get()) is not None:
                wire.send(stream, message)

    def _death(self) -> Death:
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            code = None
        self.kill()
        if self._fatal is not None:
            return _said(self._fatal)
        return Death("it closed its pipe") if code is None else _ended(code)


def _said(fatal: wire.Message) -> Death:
    """The death of a worker that told its error."""
    kind, text = str(fatal.get("fatal")), str(fatal.get("message"))
    error: CaptError
    if kind == "unexpected":
        text = f"an unexpected {text}"
        error = WorkerFailed(f"The worker process stopped with {text}. This is a defect.")
    else:
        error = _KINDS.get(kind, WorkerFailed)(text)
    return Death(text.rstrip("."), error=error)


def _ended(code: int) -> Death:
    """The death of a worker that had no time to say why."""
    if code >= 0:
        return Death(f"it ended with exit code {code}")
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if name == "SIGKILL":
        return Death(f"it was killed ({name}), probably because memory ran out", killed=True)
    why = {
        "SIGABRT": "an assertion of the engine failed",
        "SIGBUS": "a file that it had mapped is gone or broken",
        "SIGSEGV": "the engine touched memory that is not its own",
        "SIGILL": "this processor lacks an instruction that the engine was built with",
    }.get(name)
    return Death(f"it ended by {name}" + (f": {why}" if why else ""))
