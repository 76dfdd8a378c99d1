"""`batch --ray`: records are answered by actors of Ray; the journal stays with the driver.

Each actor supervises a worker process with models of its own, as a run without Ray does. Requests
go to actors in small groups, and answers stream back one by one. An actor that dies is replaced,
and its records are sent again; their seeds come from their ids, so the answers are the same.
Prompts and answers pass through Ray: on a cluster, over a network that it does not encrypt.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

from capt_local.batch import ipc
from capt_local.batch.output import ErrorCode, Failure
from capt_local.batch.supervisor import (
    DEATHS,
    Death,
    News,
    RecordOutcome,
    WorkerProcess,
    WorkerSupervisor,
    worker_command,
)
from capt_local.errors import CaptError, UsageError, WorkerFailed

OPEN_PORTS = (
    "Ray's processes listen on all network interfaces of this machine while the run goes on; a "
    "token of this run protects them."
)
_GROUP = 4  # requests in one call for each that an actor answers at once
_STORE = 80 << 20  # bytes of Ray's object store, its minimum: answers are small
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STARTS = 5  # of actors in a row that die without an answer


class Actor:
    """One worker process under supervision; runs in a process of Ray.

    Args:
        timeout: see `WorkerSupervisor`.
    """

    def __init__(self, timeout: float) -> None:
        # What llama.cpp prints may hold text, and Ray writes it to its logs.
        devnull = os.open(os.devnull, os.O_RDWR)
        for number in (1, 2):
            os.dup2(devnull, number)
        command = worker_command()
        self._workers = WorkerSupervisor(lambda: WorkerProcess(command), timeout=timeout)

    def hello(self) -> dict[str, Any]:
        """The facts that its worker sends first, or its error."""
        try:
            while (facts := self._workers.hello(1.0)) is None:
                pass
        except CaptError as error:
            return {"error": _packed_error(error)}
        return facts

    def load(self, config: Any) -> None:
        """Begins to load the models; `config` is a packed `WorkerConfig`."""
        self._workers.load(ipc.unpack(ipc.WorkerConfig, config))

    def answer(self, requests: list[tuple[int, ipc.Message]]) -> Iterator[dict[str, Any]]:
        """Answers requests; yields outcomes and news as they come, and at last an error if any."""
        left = {key for key, _ in requests}
        for key, request in requests:
            self._workers.put(key, request)
        self._workers.pause()
        try:
            while left:
                event = self._workers.poll(1.0)
                if isinstance(event, RecordOutcome):
                    left.discard(event.key)
                if event is not None:
                    yield {type(event).__name__: ipc.pack(event)}
        except CaptError as error:
            yield {"error": _packed_error(error)}


def _packed_error(error: CaptError) -> ipc.Message:
    return {"code": error.code, "message": str(error)}


def _error(packed: ipc.Message) -> CaptError:
    """The error of an actor as one of this process, with the same exit code."""
    kinds: list[type[CaptError]] = [CaptError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
        if kind.code == packed["code"] and kind.__init__ is Exception.__init__:
            return kind(packed["message"])
    return WorkerFailed(packed["message"])


class RayWorkers:
    """Actors of Ray that answer records; see `supervisor.Workers`.

    Each actor has a thread here, which sends it requests and receives what it yields.

    Args:
        ray: the library, connected to a cluster.
        actors: how many; None: one for each GPU, else for each node.
        timeout: see `WorkerSupervisor`.
        threads: CPUs that an actor computes with.
    """

    def __init__(self, ray: Any, *, actors: int | None, timeout: float, threads: int) -> None:
        self._ray = ray
        resources = ray.cluster_resources()
        gpus, cpus = resources.get("GPU", 0.0), resources.get("CPU", 0.0)
        count = actors or int(gpus) or sum(node["Alive"] for node in ray.nodes())
        if gpus and gpus < count:
            raise UsageError(f"{count} actors need as many GPUs; Ray finds {gpus:.0f}.")
        self._options = {
            "num_cpus": max(0.001, min(threads, cpus / count)),
            "num_gpus": 1.0 if gpus else 0.0,
        }
        self._kind = ray.remote(Actor).options(**self._options)
        self._timeout = timeout
        self._config: Any = None
        self._parallel = 1
        self._lock = threading.Condition()
        # Guarded by the lock: requests that wait, and those that were sent and have no outcome.
        self._waiting: deque[tuple[int, ipc.Message]] = deque()
        self._sent: dict[int, ipc.Message] = {}
        self._deaths: Counter[int] = Counter()
        self._suspects: set[int] = set()
        self._failed_starts = 0
        self._no_more = self._stopped = False
        self._events: queue.SimpleQueue[RecordOutcome | News | CaptError] = queue.SimpleQueue()
        self._actors: list[Any] = [self._kind.remote(timeout) for _ in range(count)]
        self._hellos = [actor.hello.remote() for actor in self._actors]
        self._threads: list[threading.Thread] = []

    def hello(self, seconds: float) -> dict[str, Any] | None:
        """The facts of all actors; they must be of the same build.

        Raises:
            UsageError: they are not.
            CaptError: a worker cannot start.
        """
        done, left = self._ray.wait(self._hellos, num_returns=len(self._hellos), timeout=seconds)
        if left:
            return None
        try:
            all_facts = self._ray.get(done)
        except self._ray.exceptions.RayError as error:
            raise _lost(error) from None
        for facts in all_facts:
            if "error" in facts:
                raise _error(facts["error"])
        first: dict[str, Any] = all_facts[0]
        for facts in all_facts[1:]:
            if any(facts[name] != first[name] for name in ("versions", "build")):
                raise UsageError(
                    "The machines of the Ray cluster have different versions or builds of "
                    "capt-local or llama.cpp, which may answer differently."
                )
        devices = sorted({device for facts in all_facts for device in facts["devices"]})
        return {**first, "devices": devices, "ray_actors": len(all_facts)}

    def load(self, config: ipc.WorkerConfig) -> None:
        self._config, self._parallel = ipc.pack(config), config.parallel
        for index in range(len(self._actors)):
            self._actors[index].load.remote(self._config)
            thread = threading.Thread(target=self._serve, args=(index,), daemon=True)
            self._threads.append(thread)
            thread.start()

    @property
    def has_room(self) -> bool:
        window = 2 * _GROUP * self._parallel * len(self._actors)
        with self._lock:
            return len(self._waiting) + len(self._sent) < window

    @property
    def idle(self) -> bool:
        with self._lock:
            return not self._waiting and not self._sent

    def put(self, key: int, request: ipc.Message) -> None:
        with self._lock:
            self._waiting.append((key, request))
            self._lock.notify()

    def no_more(self) -> None:
        with self._lock:
            self._no_more = True
            self._lock.notify_all()

    def poll(self, seconds: float) -> RecordOutcome | News | None:
        try:
            event = self._events.get(timeout=seconds) if seconds else self._events.get_nowait()
        except queue.Empty:
            return None
        if isinstance(event, CaptError):
            raise event
        if isinstance(event, RecordOutcome):
            with self._lock:
                self._sent.pop(event.key, None)
        return event

    def finish(self, stop: Callable[[], bool]) -> None:
        self.kill()

    def kill(self) -> None:
        with self._lock:
            self._stopped = True
            self._lock.notify_all()
        for actor in self._actors:
            with contextlib.suppress(Exception):  # Ray may have gone already
                self._ray.kill(actor)

    def _serve(self, index: int) -> None:
        """Sends an actor its requests until there are no more; runs in a thread."""
        while (group := self._take()) is not None:
            done: set[int] = set()
            try:
                stream = self._actors[index].answer.options(num_returns="streaming").remote(group)
                for reference in stream:
                    event = self._ray.get(reference)
                    if "error" in event:
                        self._events.put(_error(event["error"]))
                        return
                    self._receive(event, done)
            except self._ray.exceptions.RayError as error:
                if self._stopped or not self._replace(index, group, done, error):
                    return

    def _take(self) -> list[tuple[int, ipc.Message]] | None:
        """The next requests for one actor; a suspect alone. None at the end."""
        with self._lock:
            while not self._waiting:
                if self._stopped or (self._no_more and not self._sent):
                    self._lock.notify_all()
                    return None
                self._lock.wait(0.5)
            group: list[tuple[int, ipc.Message]] = []
            while self._waiting and len(group) < _GROUP * self._parallel:
                suspect = self._waiting[0][0] in self._suspects
                if suspect and group:
                    break
                group.append(self._waiting.popleft())
                if suspect:
                    break
            self._sent.update(group)
            return group

    def _receive(self, event: ipc.Message, done: set[int]) -> None:
        if "News" in event:
            self._events.put(ipc.unpack(News, event["News"]))
            return
        outcome = ipc.unpack(RecordOutcome, event["RecordOutcome"])
        done.add(outcome.key)
        with self._lock:
            self._failed_starts = 0
            self._suspects.discard(outcome.key)
        self._events.put(outcome)

    def _replace(
        self, index: int, group: list[tuple[int, ipc.Message]], done: set[int], error: Exception
    ) -> bool:
        """Starts another actor and puts back what the dead one had; false ends the run."""
        left = [(key, request) for key, request in group if key not in done]
        death = Death("its Ray actor died")
        with self._lock:
            self._failed_starts += 1
            for key, _ in left:
                self._sent.pop(key, None)
            if len(left) == 1:
                key = left[0][0]
                self._deaths[key] += 1
                if self._deaths[key] >= DEATHS:
                    left = []
                    self._sent[key] = {}
                    failure = Failure(ErrorCode.WORKER_DIED, death.failure().message)
                    self._events.put(RecordOutcome(key, failure=failure))
            self._suspects.update(key for key, _ in left)
            self._waiting.extendleft(reversed(left))
            self._lock.notify_all()
            if self._failed_starts > _STARTS * len(self._actors):
                self._events.put(_lost(error))
                return False
        self._events.put(News(died=death.cause))
        time.sleep(0.1)
        self._actors[index] = self._kind.remote(self._timeout)
        self._actors[index].hello.remote()
        self._actors[index].load.remote(self._config)
        return True


def _lost(error: Exception) -> WorkerFailed:
    """The message of Ray's error may hold anything."""
    return WorkerFailed(f"Ray's actors cannot be started or are lost ({type(error).__name__}).")


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
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    local = address == "local"
    if local:
        # Without these, Ray would write a token of its own into the home folder.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        import ray
    except ImportError:
        raise UsageError("--ray needs Ray: pip install 'capt-local[ray]'.") from None
    folder = tempfile.mkdtemp(prefix="capt-ray-") if local else None
    options: dict[str, Any] = {"address": address}
    if local:
        options |= {
            "num_cpus": max(actors or 1, os.cpu_count() or 1),
            "include_dashboard": False,
            "object_store_memory": _STORE,
            "_temp_dir": folder,
            "_node_ip_address": "127.0.0.1",
        }
    # Ray replaces the handlers of signals, which are to stop the run in good order.
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        try:
            ray.init(log_to_driver=False, configure_logging=False, **options)
        except Exception as error:  # its processes may fail to start in many ways
            raise UsageError(
                f"Ray could not be {'started' if local else 'reached'} ({type(error).__name__})."
            ) from None
        for number, handler in handlers.items():
            signal.signal(number, handler)
        yield ray
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
