"""`batch --ray`: worker processes under actors of Ray; the journal stays with the driver.

An actor passes messages to a worker process and back, so all else is as without Ray: a worker
whose actor dies is replaced, and its records are done again. Their seeds come from their ids, so
the answers are the same. Prompts and answers pass through Ray: on a cluster, over a network that it
does not encrypt.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from capt_local.batch import ipc
from capt_local.batch.supervisor import (
    Death,
    News,
    RecordOutcome,
    WorkerProcess,
    WorkerSupervisor,
    worker_command,
)
from capt_local.errors import UsageError, WorkerFailed

OPEN_PORTS = (
    "Ray's processes listen on all network interfaces of this machine while the run goes on; a "
    "token of this run protects them."
)
_STORE = 80 << 20  # bytes of Ray's object store, its minimum: answers are small
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ACTOR_POLL = 0.05  # seconds; what is sent to an actor waits for so long


class Actor:
    """Holds one worker process; runs in a process of Ray."""

    def __init__(self) -> None:
        # What llama.cpp prints may hold text, and Ray writes it to its logs.
        devnull = os.open(os.devnull, os.O_RDWR)
        for number in (1, 2):
            os.dup2(devnull, number)
        self._worker = WorkerProcess(worker_command())

    def exchange(self, messages: list[ipc.WireMessage]) -> list[ipc.WireMessage]:
        """Passes messages on; returns those that have come meanwhile, a death as the last one."""
        for each in messages:
            self._worker.send(each)
        found: list[ipc.WireMessage] = []
        seconds = _ACTOR_POLL
        while (message := self._worker.poll(seconds)) is not None:
            seconds = 0.0
            if isinstance(message, Death):
                error = message.error
                kind, text = type(error).__name__ if error else "", str(error)
                return [*found, {"died": message.cause, "killed": message.killed,
                                 "kind": kind, "text": text}]  # fmt: skip
            found.append(message)
        return found


class ActorProcess:
    """The worker of an actor; see `supervisor.Process`.

    Args:
        ray: the library, connected to a cluster.
        kind: the class of actors.
    """

    def __init__(self, ray: Any, kind: Any) -> None:
        self._ray, self._actor = ray, kind.remote()
        self._outbox: list[ipc.WireMessage] = []
        self._received: deque[ipc.WireMessage] = deque()
        self._reply: Any = None

    def send(self, message: ipc.WireMessage) -> None:
        self._outbox.append(message)

    def poll(self, seconds: float) -> ipc.WireMessage | Death | None:
        if not self._received:
            try:
                if self._reply is None:
                    self._reply = self._actor.exchange.remote(self._outbox)
                    self._outbox = []
                if self._ray.wait([self._reply], timeout=seconds)[0]:
                    self._received.extend(self._ray.get(self._reply))
                    self._reply = None
            except self._ray.exceptions.RayError as error:
                return Death(f"its Ray actor died ({type(error).__name__})")
        if not self._received:
            return None
        message = self._received.popleft()
        if "died" not in message:
            return message
        if message["kind"]:
            return Death.reported(message["kind"], message["text"])
        return Death(message["died"], killed=message["killed"])

    def ended(self, seconds: float) -> bool:
        return isinstance(self.poll(seconds), Death)

    def kill(self) -> None:
        with contextlib.suppress(Exception):  # Ray may have gone already
            self._ray.kill(self._actor)


class RayWorkers:
    """Workers of several actors; see `supervisor.Workers`.

    Args:
        ray: the library, connected to a cluster.
        actors: how many; None: one for each GPU, else for each node.
        timeout: see `WorkerSupervisor`.
        threads: CPUs that an actor computes with.
    """

    def __init__(self, ray: Any, *, actors: int | None, timeout: float, threads: int) -> None:
        resources = ray.cluster_resources()
        gpus, cpus = resources.get("GPU", 0.0), resources.get("CPU", 0.0)
        count = actors or int(gpus) or sum(node["Alive"] for node in ray.nodes())
        if gpus and gpus < count:
            raise UsageError(f"{count} actors need as many GPUs; Ray finds {gpus:.0f}.")
        kind = ray.remote(Actor).options(
            num_cpus=max(0.001, min(threads, cpus / count)), num_gpus=1.0 if gpus else 0.0
        )
        self._facts: list[dict[str, Any]] = []
        self._all = [
            WorkerSupervisor(lambda: ActorProcess(ray, kind), timeout=timeout) for _ in range(count)
        ]

    def hello(self, seconds: float) -> dict[str, Any] | None:
        """The facts of all actors; they must be of the same build.

        Raises:
            UsageError: they are not.
            CaptError: a worker cannot start.
        """
        if (facts := self._all[len(self._facts)].hello(seconds)) is not None:
            self._facts.append(facts)
        if len(self._facts) < len(self._all):
            return None
        first = self._facts[0]
        for facts in self._facts[1:]:
            if any(facts[name] != first[name] for name in ("versions", "build")):
                raise UsageError(
                    "The machines of the Ray cluster have different versions or builds of "
                    "capt-local or llama.cpp, which may answer differently."
                )
        devices = sorted({device for facts in self._facts for device in facts["devices"]})
        return {**first, "devices": devices, "ray_actors": len(self._all)}

    def load(self, config: ipc.WorkerConfig) -> None:
        for each in self._all:
            each.load(config)

    @property
    def has_room(self) -> bool:
        return any(each.has_room for each in self._all)

    @property
    def idle(self) -> bool:
        return all(each.idle for each in self._all)

    def put(self, key: int, request: ipc.WireMessage) -> None:
        min(self._all, key=lambda each: each.records).put(key, request)

    def no_more(self) -> None:
        for each in self._all:
            each.no_more()

    def poll(self, seconds: float) -> RecordOutcome | News | None:
        self._all.append(self._all.pop(0))  # in turn, so that none waits behind the others
        busy = [each for each in self._all if not each.idle]
        for each in busy:
            if (event := each.poll(seconds / len(busy))) is not None:
                return event
        return None

    def finish(self, stop: Callable[[], bool]) -> None:
        self.kill()

    def kill(self) -> None:
        for each in self._all:
            each.kill()


@contextlib.contextmanager
def cluster(address: str, actors: int | None) -> Iterator[Any]:
    """Connects to a Ray cluster, or starts one on this machine for `local`; gives the library.

    A local one has no usage statistics, dashboard or log forwarding, a token of its own, and a
    temporary folder that is removed.

    Args:
        address: `local`, or that of a cluster.
        actors: how many there will be on this machine.

    Raises:
        UsageError: Ray is not installed, cannot be started, or is not reached.
        WorkerFailed: Ray is lost in the middle of the run.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options: dict[str, Any] = {"address": address}
    folder = ""
    if address == "local":
        # Without these, Ray would write a token of its own into the home folder.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        import ray
    except ImportError:
        raise UsageError("--ray needs Ray: pip install 'capt-local[ray]'.") from None
    if address == "local":
        folder = tempfile.mkdtemp(prefix="capt-ray-")
        options |= {
            "num_cpus": max(actors or 1, os.cpu_count() or 1),
            "include_dashboard": False,
            "object_store_memory": _STORE,
            "_temp_dir": f"{folder}/r",  # Ray opens its own folder to everybody, not the one above
            "_node_ip_address": "127.0.0.1",
        }
    # Ray replaces the handlers of signals, which are to stop the run in good order.
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        try:
            ray.init(log_to_driver=False, configure_logging=False, **options)
        except Exception as error:  # its processes may fail to start in many ways
            raise UsageError(
                f"Ray could not be {'started' if folder else 'reached'} ({type(error).__name__})."
            ) from None
        for number, handler in handlers.items():
            signal.signal(number, handler)
        yield ray
    except ray.exceptions.RayError as error:  # its message may hold anything
        raise WorkerFailed(f"Ray was lost ({type(error).__name__}).") from None
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
