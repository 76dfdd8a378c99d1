"""The thread with the models: requests wait in a queue, join the running batch, and leave it.

Nothing else touches the `Runtime` while the thread runs. What happens to a request reaches its
`sink` from this thread; `asyncio` is the business of the caller.
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
from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.step import FinishReason, Step
from capt_local.errors import CaptError, place_of
from capt_local.prompting.messages import Message
from capt_local.runtime import Runtime

T = TypeVar("T")


class QueueFull(Exception):
    """So many requests wait that another one is refused."""


class EngineFailed(CaptError):
    """The thread with the models met an error of its own; the request is lost."""

    code = "server_error"


@dataclass(frozen=True, slots=True)
class Stepped:
    """A token of an answer."""

    generation: Generation
    step: Step


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of an answer; without a generation it never began."""

    generation: Generation | None
    error: CaptError | None = None


class Job:
    """A request on its way through the engine; see `Engine.job`."""

    def __init__(self, sink: Callable[[Stepped | Ended], None]) -> None:
        self.sink = sink
        self.cancelled = False
        self.request: Request

    def cancel(self) -> None:
        """Ends the request before its next step; any thread may call it."""
        self.cancelled = True


class Engine:
    """See the module.

    Args:
        runtime: that answers; the engine does not close it.
        options: of the answer to nothing that is made first, so that tables are there.
        parallel: requests that are answered at once.
        waiting: requests that may wait beside.
        forget_after: seconds without a request after which the models forget all texts.
        report: called with a line about an error of the program itself.

    Attributes:
        counts: of requests and tokens since the start, by name; nothing else is kept of them.
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
        self.parallel = parallel
        self.counts: Counter[str] = Counter()
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

    def job(
        self,
        prompt: str | Sequence[Message],
        options: GenerateOptions,
        sink: Callable[[Stepped | Ended], None],
        *,
        raw: bool = False,
    ) -> Job:
        """A request that has not been sent yet.

        Args:
            prompt: see `batching.Request`.
            options: likewise.
            sink: called in the engine's thread with each `Stepped`, then once with `Ended`.
            raw: see `batching.Request`.
        """
        job = Job(sink)

        def on_step(generation: Generation, step: Step) -> None:
            sink(Stepped(generation, step))
            self._answer_calls()

        job.request = Request(prompt, options, raw, on_step, lambda: job.cancelled)
        return job

    def submit(self, *jobs: Job) -> None:
        """Puts jobs at the end of the queue, all or none.

        Raises:
            QueueFull: too many wait.
        """
        if self.waiting + len(jobs) > self._most + max(0, self.parallel - self.running):
            self.counts["refused"] += 1
            raise QueueFull
        for job in jobs:
            self._jobs.put(job)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Has the thread call a function between two steps; for what needs the models' tokenizers.

        Returns:
            Its result, or what it raised.
        """
        found: Future[T] = Future()
        self._calls.put((function, found))
        self._jobs.put(None)
        return found

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._jobs.qsize()

    def _run(self) -> None:
        while not self._stopping:
            try:
                results = self.runtime.generate_many(
                    self._requests(),
                    parallel=self.parallel,
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
                self._failed(error)
            self._holds_texts = False
        self._drain(Ended(None, EngineFailed("The server is stopping.")))

    def _requests(self) -> Iterator[Request | None]:
        """What `generate_many` takes; ends where nothing has come for a while."""
        index = 0
        if not self._ready.done():
            self._running[index] = job = self.job("a", self._warm, lambda event: None)
            index += 1
            yield job.request
        while not self._stopping:
            self._answer_calls()
            idle = not self._running
            if idle and not self._ready.done():
                self.counts.clear()
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
                found.sink(Ended(None))
                continue
            self._holds_texts = True
            self._running[index] = found
            index += 1
            yield found.request

    def _answer_calls(self) -> None:
        while not self._calls.empty():
            function, found = self._calls.get()
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
                self.counts[f"prompt:{role}"] += count
                self.counts[f"reused:{role}"] += max(0, count - read.get(role, 0))
            self.counts["tokens"] += generation.steps_done
            self.counts["changed"] += generation.changed
        self.counts[outcome] += 1
        job.sink(Ended(generation, result.error))

    def _failed(self, error: BaseException) -> None:
        """An error that is no request's own ends all that run; the next ones are answered."""
        self._report(f"an unexpected error at {place_of(error)} ended the running answers")
        failure = EngineFailed("The server met an unexpected error; nothing more is known.")
        for job in self._running.values():
            self.counts["failed"] += 1
            job.sink(Ended(None, failure))
        self._running.clear()

    def _drain(self, ended: Ended) -> None:
        for job in self._running.values():
            job.sink(ended)
        while not self._jobs.empty():
            if (waits := self._jobs.get()) is not None:
                waits.sink(ended)
