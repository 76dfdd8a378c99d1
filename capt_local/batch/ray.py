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
from collections.abc import Iterator
from typing import Any

from capt_local.batch.supervisor import Death, WireMessage, WorkerProcess, Workers, worker_command
from capt_local.errors import UsageError, WorkerFailed

OPEN_PORTS = (
    "Ray's processes listen on all network interfaces of this machine while the run goes on; a "
    "token of this run protects them."
)
_STORE = 80 << 20  # bytes of Ray's object store, its minimum: answers are small
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ACTOR_POLL = 0.05  # seconds; the longest delay of a message to an actor


class Actor:
    """Holds one worker process; runs in a process of Ray."""

    def __init__(self) -> None:
        # What llama.cpp prints may hold text, and Ray writes it to its logs.
        devnull = os.open(os.devnull, os.O_RDWR)
        for number in (1, 2):
            os.dup2(devnull, number)
        self._worker = WorkerProcess(worker_command())

    def exchange(self, messages: list[WireMessage]) -> list[WireMessage | Death]:
        """Passes messages on; returns those that have come meanwhile, a death as the last one."""
        for each in messages:
            self._worker.send(each)
        found: list[WireMessage | Death] = []
        seconds = _ACTOR_POLL
        while (message := self._worker.poll(seconds)) is not None:
            seconds = 0.0
            found.append(message)
            if isinstance(message, Death):
                break
        return found


class ActorProcess:
    """The worker of an actor; see `supervisor.Process`."""

    def __init__(self, ray: Any, kind: Any) -> None:
        self._ray, self._actor = ray, kind.remote()
        self._outbox: list[WireMessage] = []
        self._received: deque[WireMessage | Death] = deque()
        self._reply: Any = None

    def send(self, message: WireMessage) -> None:
        self._outbox.append(message)

    def poll(self, seconds: float) -> WireMessage | Death | None:
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
        return self._received.popleft() if self._received else None

    def kill(self) -> None:
        with contextlib.suppress(Exception):  # Ray may have gone already
            self._ray.kill(self._actor)


def ray_workers(ray: Any, *, actors: int | None, timeout: float, threads: int) -> Workers:
    """Workers under actors, one for each GPU, else for each node, where `actors` does not say.

    Each computes with so many threads. Raises UsageError if there are more actors than GPUs.
    """
    resources = ray.cluster_resources()
    gpus, cpus = resources.get("GPU", 0.0), resources.get("CPU", 0.0)
    count = actors or int(gpus) or sum(node["Alive"] for node in ray.nodes())
    if gpus and gpus < count:
        raise UsageError(f"{count} actors need as many GPUs; Ray finds {gpus:.0f}.")
    kind = ray.remote(Actor).options(
        num_cpus=max(0.001, min(threads, cpus / count)), num_gpus=1.0 if gpus else 0.0
    )
    return Workers(lambda: ActorProcess(ray, kind), count=count, timeout=timeout)


@contextlib.contextmanager
def cluster(address: str, actors: int | None) -> Iterator[Any]:
    """Connects to a Ray cluster, or starts one on this machine for `local`; gives the library.

    A local one has no usage statistics, dashboard or log forwarding, a token of its own, and a
    temporary folder that is removed.

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
