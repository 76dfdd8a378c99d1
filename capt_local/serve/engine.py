"""The engine thread: continuous batching of the requests that wait in its queue.

Nothing else uses the `Runtime` while the thread runs. Events of a request are passed to its `sink`
in this thread; the caller hands them to its asyncio loop.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from capt_local.decoding.batching import Request, RequestResult
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import FinishReason, GenerateOptions, Step
from capt_local.errors import CaptError, error_location
from capt_local.prompting.messages import Message
from capt_local.runtime import Runtime

T = TypeVar("T")
_OUTCOMES = ("answered", "failed", "left", "refused")


class EngineFailed(CaptError):
    """The thread with the models met an error of its own; the request is lost."""

    code = "server_error"


# The generation, None if it never began; its new token, None at the end; the error that ended it.
Sink = Callable[[Generation | None, Step | None, CaptError | None], None]


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way through the engine (see `batching.Request`).

    Attributes:
        sink: called in the engine's thread with each token, then once with the end.
        cancelled: ends it before its next step; any thread may set it.
    """

    prompt: str | Sequence[Message]
    options: GenerateOptions
    raw: bool
    sink: Sink
    owner: str = ""
    cancelled: bool = False


class Engine:
    """See the module.

    Args:
        runtime: that answers; the engine does not close it.
        options: of the warm-up answer, which builds the alignment tables.
        parallel: requests that are answered at once.
        waiting: requests that may wait beside.
        forget_after: seconds without a request after which all KV caches are cleared.
        report: called with a line about an error of the program itself.
    """

    def __init__(
        self,
        runtime: Runtime,
        options: GenerateOptions,
        *,
        parallel: int,
        waiting: int,
        forget_after: float,
        report: Callable[[str], None],
    ) -> None:
        self.runtime = runtime
        self._parallel = parallel
        self._counts: Counter[str] = Counter()  # nothing else is kept of requests
        self._warm = GenerateOptions(method=options.method, max_tokens=1, combine=options.combine)
        self._most = waiting
        self._forget_after = forget_after
        self._report = report
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None: look again
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._running: dict[int, Job] = {}
        self._holds_texts = False
        self._stopping = False
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread; returns when the first request can be answered.

        Raises:
            MemoryShortage, ModelError: so many at once do not fit, or a model fails.
        """
        self._thread.start()
        self._ready.result()

    def stop(self) -> None:
        """Ends what runs and the thread."""
        self._stopping = True
        self._jobs.put(None)
        self._thread.join()

    def submit(self, *jobs: Job) -> bool:
        """Puts jobs at the end of the queue, all or none; false where too many wait."""
        free = max(0, self._parallel - len(self._running))
        if self._jobs.qsize() + len(jobs) > self._most + free:
            self._count("refused")
            return False
        for job in jobs:
            self._jobs.put(job)
        return True

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Runs a function in the engine thread between two steps; for work on the models."""
        found: Future[T] = Future()
        self._calls.put((function, found))
        self._jobs.put(None)
        return found

    def metrics(self) -> dict[str, int]:
        """Counts since the start, by their names in the text format of Prometheus."""
        names = [f'requests_total{{outcome="{each}"}}' for each in _OUTCOMES]
        for role in self.runtime.models:
            names += [f'{kind}_tokens_total{{model="{role}"}}' for kind in ("prompt", "reused")]
        names += ["answer_tokens_total", "changed_tokens_total"]
        here = {"running": len(self._running), "waiting": self._jobs.qsize()}
        return {name: self._counts[name] for name in names} | here

    def _count(self, outcome: str) -> None:
        self._counts[f'requests_total{{outcome="{outcome}"}}'] += 1

    def _run(self) -> None:
        while not self._stopping:
            try:
                results = self.runtime.generate_many(
                    self._requests(),
                    parallel=self._parallel,
                    cancel=lambda: self._stopping,
                    reuse=True,
                )
                for result in results:
                    self._ended(result)
                self.runtime.forget()
            except BaseException as error:
                if not self._ready.done():
                    self._ready.set_exception(error)
                    return
                # An error of no single request fails all running ones; later ones are served.
                place = error_location(error)
                self._report(f"an unexpected error at {place} ended the running answers")
                failure = EngineFailed("The server met an unexpected error; nothing more is known.")
                for job in self._running.values():
                    self._count("failed")
                    job.sink(None, None, failure)
                self._running.clear()
            self._holds_texts = False
        ended = EngineFailed("The server is stopping.")
        for job in self._running.values():
            job.sink(None, None, ended)
        while not self._jobs.empty():
            if (waits := self._jobs.get()) is not None:
                waits.sink(None, None, ended)

    def _requests(self) -> Iterator[Request | None]:
        """The requests for `generate_many`; ends after `forget_after` seconds without one."""
        index = 0
        if not self._ready.done():
            self._running[index] = warm = Job("a", self._warm, False, lambda *_: None)
            index += 1
            yield self._request(warm)
        while not self._stopping:
            self._answer_calls()
            idle = not self._running
            if idle and not self._ready.done():
                self._counts.clear()
                self._ready.set_result(None)
            try:
                found = self._jobs.get(idle, self._forget_after if self._holds_texts else None)
            except queue.Empty:
                if idle:
                    return
                yield None
                continue
            if found is None:
                continue
            if found.cancelled:
                found.sink(None, None, None)
                continue
            self._holds_texts = True
            self._running[index] = found
            index += 1
            yield self._request(found)

    def _request(self, job: Job) -> Request:
        def on_step(generation: Generation, step: Step) -> None:
            job.sink(generation, step, None)
            self._answer_calls()

        return Request(
            job.prompt, job.options, job.raw, on_step, lambda: job.cancelled, owner=job.owner
        )

    def _answer_calls(self) -> None:
        while not self._calls.empty():
            function, found = self._calls.get()
            if not found.set_running_or_notify_cancel():
                continue  # nobody waits for it any more
            try:
                found.set_result(function())
            except BaseException as error:
                found.set_exception(error)

    def _ended(self, result: RequestResult) -> None:
        if result.error is not None and not self._ready.done():
            raise result.error
        job = self._running.pop(result.index)
        generation = result.generation
        outcome = "failed" if result.error is not None or generation is None else "answered"
        if generation is not None:
            if generation.finish is FinishReason.INTERRUPTED:
                outcome = "left"
            read = generation.prompt_decoded
            for role, count in generation.prompt_tokens.items():
                reused = max(0, count - read.get(role, 0))
                self._counts[f'prompt_tokens_total{{model="{role}"}}'] += count
                self._counts[f'reused_tokens_total{{model="{role}"}}'] += reused
            self._counts["answer_tokens_total"] += generation.steps_done
            self._counts["changed_tokens_total"] += generation.changed
        self._count(outcome)
        job.sink(generation, None, result.error)
