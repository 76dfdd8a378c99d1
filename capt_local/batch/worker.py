"""The worker process: the models live here, so a crash of the engine does not end the run.

It reads from standard input and writes to standard output (`supervisor`); what libraries print is
discarded, since it may hold text. It knows neither files nor ids, and it ends when the run does.

    from the run    {"load": WorkerConfig}, {"request": key, ...} for each record, {"end": true}
    to the run      {"hello": facts}, {"loading": role, "share": x}, {"ready": facts},
                    {"begun": key}, {"alive": true}, {"answered": key, "answer": {...}},
                    {"failed": key, "code": ..., "message": ...}, {"fatal": kind, "message": ...}
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import msgspec

from capt_local.batch.output import Failure
from capt_local.batch.records import record_options
from capt_local.batch.supervisor import WireMessage, WorkerConfig, receive, send
from capt_local.decoding.batching import Request, RequestResult
from capt_local.decoding.options import GenerateOptions
from capt_local.documents import Document
from capt_local.errors import CaptError, error_location
from capt_local.grounding import missing_from
from capt_local.prompting.messages import Message
from capt_local.provenance import about_model, platform_name, versions_of
from capt_local.report.json import answer_object, answer_of
from capt_local.rerank import Scorer, Unsupported, candidate_requests, open_scorer, ranked
from capt_local.runtime import Runtime

OpenRuntime = Callable[[WorkerConfig, Callable[[str, float], None]], Any]
_LOADING_EVERY = 0.01  # of a file
_ALIVE_EVERY = 1.0  # seconds
_CANDIDATES = 100  # of a token in the answer object: all that a step has


def main(
    open_runtime: OpenRuntime | None = None, facts: Callable[[], dict[str, Any]] | None = None
) -> None:
    """Serves until the run ends. The arguments replace the models, for tests."""
    from capt_local.hardening import keep_memory_private, prefer_oom_kill

    def open_models(config: WorkerConfig, progress: Callable[[str, float], None]) -> Runtime:
        return Runtime.open(
            config.bundle,
            load=config.load,
            progress=progress,
            check=config.check,
            date=config.date,
            roles=config.options.method.roles,
        )

    prefer_oom_kill()
    keep_memory_private()
    # The parent process handles signals of the terminal or batch system, then ends the worker.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    devnull = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(devnull, number)
    Worker(incoming, outgoing, open_runtime or open_models, facts or machine_facts).serve()


@dataclass(frozen=True, slots=True)
class _PendingRecord:
    """A record in progress, with the results of its requests so far."""

    key: int
    prompt: str | list[Message]
    options: GenerateOptions
    source: tuple[str, str] | None  # the text that must support all facts, and its kind
    results: list[RequestResult] = field(default_factory=list)


class Worker:
    """Answers records, several at once."""

    def __init__(
        self,
        incoming: IO[bytes],
        outgoing: IO[bytes],
        open_runtime: OpenRuntime,
        facts: Callable[[], dict[str, Any]],
    ) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._open_runtime, self._facts = open_runtime, facts
        self._messages: queue.SimpleQueue[WireMessage] = queue.SimpleQueue()
        self._shares: dict[str, float] = {}
        self._ended = False
        self._last_sent = 0.0

    def serve(self) -> None:
        """Runs the protocol from `hello` to the end."""
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self._send({"hello": self._facts()})
            config = msgspec.convert(
                self._messages.get()["load"],
                WorkerConfig,
                dec_hook=lambda kind, value: kind(value),  # paths
            )
            with self._open_runtime(config, self._loading) as runtime, contextlib.ExitStack() as on:
                scorer = None
                if config.best_of > 1:
                    scorer = open_scorer(config.scorer, runtime.bundle, config.check)
                if scorer is not None:
                    on.enter_context(scorer)
                models = {role: about_model(model) for role, model in runtime.models.items()}
                self._send({"ready": {"notices": list(runtime.notices), "models": models}})
                while not self._ended:
                    self._answer(runtime, config, scorer)
        except BrokenPipeError:
            return
        except CaptError as error:
            self._send({"fatal": type(error).__name__, "message": str(error)})
        except Exception as error:
            # The message of such an error may hold text of a record.
            place = f"{type(error).__name__} at {error_location(error)}"
            self._send({"fatal": "unexpected", "message": place})

    def _read(self) -> None:
        """Queues incoming messages; exits the process when the run has gone."""
        while (message := receive(self._incoming)) is not None:
            self._messages.put(message)
        os._exit(0)

    def _send(self, message: WireMessage) -> None:
        send(self._outgoing, message)
        self._last_sent = time.monotonic()

    def _alive(self) -> bool:
        """The decoder's `cancel`, between steps: never cancels; a worker that hangs sends none."""
        if time.monotonic() - self._last_sent >= _ALIVE_EVERY:
            self._send({"alive": True})
        return False

    def _loading(self, role: str, share: float) -> None:
        if share >= 1.0 or abs(share - self._shares.get(role, -1.0)) >= _LOADING_EVERY:
            self._shares[role] = share
            self._send({"loading": role, "share": share})

    def _answer(self, runtime: Runtime, config: WorkerConfig, scorer: Scorer | None) -> None:
        """Answers records concurrently; the candidates of several records share the slots."""
        asked: dict[int, _PendingRecord] = {}  # by the index of each request
        requests = self._requests(config, asked)
        # Also with one slot, so that answers have the same bits as concurrent ones.
        many = runtime.generate_many(requests, parallel=config.parallel, cancel=self._alive)
        for result in many:
            record = asked.pop(result.index)
            record.results.append(result)
            if len(record.results) == config.best_of:
                self._deliver(runtime.bundle.id, record, scorer)

    def _requests(
        self, config: WorkerConfig, asked: dict[int, _PendingRecord]
    ) -> Iterator[Request]:
        """Requests as they are wanted, those of one record behind each other."""
        # The run sends more records than are answered at once, so waiting for the next one delays
        # nothing. Behind one that is `alone` it sends no other before the answer, so the call ends
        # there.
        alone, count = False, 0
        while not alone:
            message = self._messages.get()
            if "end" in message:
                self._ended = True
                return
            key, alone = message["request"], message.get("alone", False)
            self._send({"begun": key})
            prompt = message["prompt"]
            if not isinstance(prompt, str):
                prompt = [Message(**turn) for turn in prompt]
            options = record_options(config.options, message["seed"], message["adapter_scales"])
            record = _PendingRecord(key, prompt, options, message.get("source"))
            if config.best_of > 1:
                requests = candidate_requests(prompt, options, config.best_of, raw=config.raw)
            else:
                requests = [Request(prompt, options, raw=config.raw)]
            for request in requests:
                asked[count] = record
                count += 1
                yield request

    def _deliver(self, model: str, record: _PendingRecord, scorer: Scorer | None) -> None:
        """Sends the answer to a record, the best of several, or why there is none."""
        results = sorted(record.results, key=lambda result: result.index)
        error = next((result.error for result in results if result.error is not None), None)
        if error is not None:
            failure = Failure.of(error)
            self._send({"failed": record.key, "code": failure.code, "message": failure.message})
            return
        if len(results) > 1:
            unsupported: Unsupported | None = None
            if record.source is not None:
                text, of = record.source
                form = record.options.structure
                missing = missing_from(
                    Document(text), json.loads(form.source) if form else None, of
                )

                def counted(answer: str) -> tuple[int, int]:
                    self._alive()
                    return missing(answer)

                unsupported = counted
            found = ranked(record.prompt, record.options, results, scorer, unsupported=unsupported)
            best = found.candidates[0]
            notices = (*best.generation.notices, *found.notices)
            answer = answer_of(
                best.generation, best.steps, model, notices=notices, best_of=found.as_object()
            )
        else:
            generation = results[0].generation
            assert generation is not None, "it has ended without an error"
            answer = answer_of(generation, results[0].steps, model)
        body = answer_object(answer, top_logprobs=_CANDIDATES)
        self._send({"answered": record.key, "answer": body})


def machine_facts() -> dict[str, Any]:
    """What is known before models are loaded: versions, llama.cpp's build, processor, devices."""
    import numpy

    from capt_local.llama.library import library

    build = library().build_info()
    devices = [f"{device.name}: {device.description}" for device in build.devices]
    return {
        "versions": {
            **versions_of(build),
            "numpy": numpy.__version__,
        },
        "build": {"platform": platform_name(), "llama_cpp": build.system_info},
        # Without free memory, which changes between starts. llama.cpp may describe a CPU without
        # its model name, so that is added.
        "devices": [*devices, f"processor: {processor_name()}"],
    }


def processor_name() -> str:
    """The model of the CPU."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


if __name__ == "__main__":
    main()
