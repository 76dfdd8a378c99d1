"""The endpoints: OpenAI's, and those of the page."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from capt_local.decoding.options import GenerateOptions, Method
from capt_local.decoding.step import FinishReason
from capt_local.errors import CaptError, UsageError
from capt_local.llama.options import LoadOptions
from capt_local.provenance import provenance
from capt_local.report.html import page
from capt_local.report.json import JsonObject, answer_from, answer_of, new_id
from capt_local.serve.engine import Ended, Engine, Job, QueueFull, Stepped
from capt_local.serve.protocol import (
    ApiError,
    Completion,
    Writer,
    api_error,
    ours,
    read_completion,
    usage,
)
from capt_local.serve.tasks import Task
from capt_local.strict_json import NotReadable, parse_object
from capt_local.version import __version__

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
OPEN_PATHS = frozenset((*_FILES, "/health", "/openapi.json"))
_PATIENCE = 10.0  # seconds after which a stream begins though no token is there
_RETRY = "5"
_LARGEST_NOTE = 4 << 20
# Methods that need tables of both vocabularies which no other method needs.
_ONE_VOCABULARY = (Method.PROXY_TUNING, Method.CONTRASTIVE)

Documents = Callable[[bytes, str], str]


@dataclass(frozen=True, slots=True)
class Service:
    """What the endpoints need.

    Attributes:
        engine: that answers.
        options: of answers, where a request says nothing.
        load: how the models were loaded, for provenance.
        load_seconds: how long that took.
        tasks: of the page.
        check: refuses options that the site forbids.
        reports: whether reports may be made.
        documents: the text of a file of a kind; None where no such files are read.
        kinds: that it reads, such as "pdf".
    """

    engine: Engine
    options: GenerateOptions
    load: LoadOptions
    load_seconds: float
    tasks: Sequence[Task]
    check: Callable[[GenerateOptions], None]
    reports: bool = True
    documents: Documents | None = None
    kinds: tuple[str, ...] = ()
    models: Mapping[str, Method] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Finds the methods that the models can do."""
        runtime = self.engine.runtime
        loaded, name = set(runtime.models), runtime.bundle.id
        found = {name: self.options.method}
        vocabularies = [model.vocabulary for model in runtime.models.values()]
        shared = all(vocabularies[0].same_as(each) for each in vocabularies[1:])
        for method in Method:
            needs = set(method.roles or ("target", "expert", "base"))
            if needs <= loaded and (shared or method not in _ONE_VOCABULARY):
                found[f"{name}:{method}"] = method
        object.__setattr__(self, "models", found)


def application(service: Service) -> Starlette:
    """The application, without its guard."""
    return _Endpoints(service).app


class _Stream(Response):
    """Server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with contextlib.aclosing(self._events) as events:  # type: ignore[type-var]
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class _Left(Exception):
    """The client has gone."""


class _Answers:
    """The answers to one request, on their way from the engine's thread to the client."""

    def __init__(self, service: Service, completion: Completion, request: Request) -> None:
        self._service = service
        self.completion = completion
        self.writers = [Writer(completion, index) for index in range(len(completion.options))]
        self._events: asyncio.Queue[tuple[int, Stepped | Ended] | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._jobs = [self._job(index, each) for index, each in enumerate(completion.options)]
        self._open = len(self._jobs)
        self._watch = asyncio.ensure_future(_gone(request))

    def _job(self, index: int, options: GenerateOptions) -> Job:
        def sink(event: Stepped | Ended) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        return self._service.engine.job(
            self.completion.prompt, options, sink, raw=not self.completion.chat
        )

    def begin(self) -> None:
        """Queues the jobs.

        Raises:
            ApiError: the queue is full.
        """
        self._watch.add_done_callback(lambda _: self._events.put_nowait(None))
        try:
            self._service.engine.submit(*self._jobs)
        except QueueFull:
            self.close()
            raise ApiError(503, "All places are taken; try again soon.", "overloaded") from None

    def close(self) -> None:
        """Ends what still runs."""
        for job in self._jobs:
            job.cancel()
        self._watch.cancel()

    async def next(self, patience: float | None = None) -> JsonObject | None:
        """The next chunk; None where all answers have ended.

        Raises:
            ApiError: an answer failed.
            TimeoutError: there was none for so many seconds.
            _Left: the client has gone.
        """
        if not self._open:
            return None
        async with asyncio.timeout(patience):
            found = await self._events.get()
        if found is None:
            raise _Left
        index, event = found
        writer = self.writers[index]
        if isinstance(event, Stepped):
            return writer.add(event.generation, event.step)
        self._open -= 1
        if event.error is not None:
            raise api_error(event.error, began=event.generation is not None)
        made = event.generation
        if made is None or made.finish is FinishReason.INTERRUPTED:
            raise ApiError(503, "The server is stopping; the answer is incomplete.", "stopping")
        return writer.end(made)

    async def tail(self) -> JsonObject:
        """What stands behind the choices: the counts, and ours where it is wanted."""
        found: JsonObject = {"usage": usage(self.writers)}
        made = self.writers[0].generation
        if self.completion.capt is None or made is None:
            return found
        engine, service = self._service.engine, self._service
        known = await asyncio.to_thread(
            provenance, engine.runtime, self.completion.options[0], service.load, None,
            made.text_bytes,
        )  # fmt: skip
        answer = answer_of(
            made, self.writers[0].steps, engine.runtime.bundle.id, load=service.load_seconds,
            notices=(*engine.runtime.notices, *made.notices), provenance=known,
        )  # fmt: skip
        return found | ours(answer)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Endpoints:
    """The functions behind the paths."""

    def __init__(self, service: Service) -> None:
        self._service = service
        folder = resources.files("capt_local.serve") / "static"
        self._files = {
            path: ((folder / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()
        }
        data = resources.files("capt_local") / "data"
        self._example = (data / "demo_note.txt").read_text("utf-8").strip()
        routes = [Route(path, self.file) for path in _FILES]
        routes += [
            Route("/v1/models", self.list_models),
            Route("/v1/models/{model:path}", self.show_model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.openapi),
            Route("/about", self.about),
            Route("/count", self.count, methods=["POST"]),
            Route("/report", self.report, methods=["POST"]),
            Route("/documents", self.document, methods=["POST"]),
        ]
        handlers: Any = {ApiError: _problem, HTTPException: _http_problem}
        self.app = Starlette(routes=routes, exception_handlers=handlers)

    async def file(self, request: Request) -> Response:
        data, kind = self._files[request.url.path]
        return Response(data, media_type=kind, headers={"cache-control": "no-cache"})

    async def list_models(self, _: Request) -> Response:
        return _json({"object": "list", "data": [_model(name) for name in self._service.models]})

    async def show_model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name not in self._service.models:
            raise ApiError(404, "There is no such model; /v1/models lists them.",
                           "model_not_found", "model")  # fmt: skip
        return _json(_model(name))

    async def chat(self, request: Request) -> Response:
        return await self._complete(request, chat=True)

    async def completions(self, request: Request) -> Response:
        return await self._complete(request, chat=False)

    async def _complete(self, request: Request, *, chat: bool) -> Response:
        service, data = self._service, await request.body()
        completion = await asyncio.to_thread(
            read_completion, data, chat=chat, models=service.models, options=service.options,
            id=new_id(), check=service.check,
        )  # fmt: skip
        answers = _Answers(service, completion, request)
        answers.begin()
        if completion.stream:
            try:
                first = await answers.next(_PATIENCE)
            except TimeoutError:
                first = {}
            except BaseException as error:
                answers.close()
                if isinstance(error, _Left):
                    return Response()
                raise
            return _Stream(_chunks(answers, first))
        try:
            while await answers.next() is not None:
                pass
            whole = completion.head() | {"choices": [each.choice() for each in answers.writers]}
            return _json(whole | await answers.tail())
        except _Left:
            return Response()
        finally:
            answers.close()

    async def health(self, _: Request) -> Response:
        return _json({"status": "ok"})

    async def metrics(self, _: Request) -> Response:
        return Response(_metrics(self._service.engine), media_type="text/plain; version=0.0.4")

    async def openapi(self, _: Request) -> Response:
        from capt_local.serve.openapi import description

        return _json(description())

    async def about(self, _: Request) -> Response:
        """What the page shows before the first answer."""
        service, runtime = self._service, self._service.engine.runtime
        return _json({
            "version": __version__,
            "bundle": runtime.bundle.id,
            "title": runtime.bundle.title,
            "models": list(service.models),
            "contexts": {role: each.context_limit for role, each in runtime.models.items()},
            "max_tokens": service.options.max_tokens,
            "notices": runtime.notices,
            "reports": service.reports,
            "documents": list(service.kinds),
            "tasks": service.tasks,
            "example": self._example,
        })  # fmt: skip

    async def count(self, request: Request) -> Response:
        """Tokens that a conversation takes in each model."""
        completion = await asyncio.to_thread(
            read_completion, await request.body(), chat=True, models=self._service.models,
            options=self._service.options, id="", check=self._service.check,
        )  # fmt: skip
        runtime, prompt = self._service.engine.runtime, completion.prompt
        try:
            found = await asyncio.wrap_future(
                self._service.engine.call(lambda: runtime.count(prompt))
            )
        except CaptError as error:
            raise api_error(error) from None
        return _json({
            role: {"tokens": tokens, "limit": limit} for role, (tokens, limit) in found.items()
        })  # fmt: skip

    async def report(self, request: Request) -> Response:
        """The HTML report of an answer that the page has."""
        if not self._service.reports:
            raise ApiError(403, "Reports are forbidden on this machine.", "forbidden")
        data = await request.body()
        made = await asyncio.to_thread(_report, data)
        return Response(made, media_type="text/html; charset=utf-8",
                        headers={"cache-control": "no-store"})  # fmt: skip

    async def document(self, request: Request) -> Response:
        """The text of a file."""
        kind, read = request.query_params.get("kind", ""), self._service.documents
        if read is None or kind not in self._service.kinds:
            raise ApiError(415, "Files of this kind are not read here.", "unsupported_file")
        data = await request.body()
        try:
            text = await asyncio.to_thread(read, data, kind)
        except CaptError as error:
            raise api_error(error) from None
        return _json({"text": text})


async def _chunks(answers: _Answers, chunk: JsonObject | None) -> AsyncIterator[bytes]:
    """The events of a stream; the first chunk is there, or empty if it takes its time."""
    completion = answers.completion
    tail = completion.usage or completion.capt is not None
    try:
        while chunk is not None:
            if chunk:
                yield _event(chunk | ({"usage": None} if completion.usage else {}))
            else:
                yield b": waiting\n\n"  # so that nobody on the way takes it for dead
            try:
                chunk = await answers.next(_PATIENCE)
            except TimeoutError:
                chunk = {}
        if tail:
            rest = completion.head(chunk=True) | {"choices": []}
            yield _event(rest | await answers.tail())
        yield b"data: [DONE]\n\n"
    except _Left:
        pass
    except ApiError as error:
        yield _event(error.body())
    finally:
        answers.close()


def _event(value: JsonObject) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        msgspec.json.encode(value), status, media_type="application/json",
        headers={"cache-control": "no-store", **(headers or {})},
    )  # fmt: skip


async def _problem(_: Request, error: ApiError) -> Response:
    headers = {"retry-after": _RETRY} if error.status == 503 else {}
    return _json(error.body(), error.status, headers)


async def _http_problem(_: Request, error: HTTPException) -> Response:
    told = {404: "There is nothing at this path.", 405: "This path has no such method."}
    problem = ApiError(error.status_code, told.get(error.status_code, "It is not possible."))
    return _json(problem.body(), error.status_code, error.headers)


def _model(name: str) -> JsonObject:
    return {"id": name, "object": "model", "created": 0, "owned_by": "capt-local"}


def _report(data: bytes) -> str:
    try:
        fields = parse_object(data)
        note = fields.get("note")
        if not isinstance(note, str) or len(note) > _LARGEST_NOTE:
            raise NotReadable("note is no text")
        answer = answer_from(fields.get("answer"))
        if (alone := fields.get("alone")) is not None:
            answer = dataclasses.replace(answer, alone=answer_from(alone))
        return page(answer, note)
    except NotReadable as error:
        raise ApiError(400, f"The report cannot be made: {error}.", "invalid_value") from None
    except UsageError as error:
        raise api_error(error) from None


def _metrics(engine: Engine) -> str:
    """Counts in the text format of Prometheus; no name or value of a request."""
    counts, lines = engine.counts, list[str]()

    def add(name: str, kind: str, help: str, values: Mapping[str, int]) -> None:
        lines.append(f"# HELP capt_{name} {help}\n# TYPE capt_{name} {kind}")
        lines.extend(f"capt_{name}{label} {value}" for label, value in values.items())

    outcomes = ("answered", "failed", "left", "refused")
    add("requests_total", "counter", "Requests by what became of them.",
        {f'{{outcome="{each}"}}': counts[each] for each in outcomes})  # fmt: skip
    for name, help in (("prompt", "Tokens of prompts."), ("reused", "Of these, not read again.")):
        add(f"{name}_tokens_total", "counter", help,
            {f'{{model="{role}"}}': counts[f"{name}:{role}"]
             for role in engine.runtime.models})  # fmt: skip
    add("answer_tokens_total", "counter", "Tokens of answers.", {"": counts["tokens"]})
    add("changed_tokens_total", "counter", "Of these, changed by the expert.",
        {"": counts["changed"]})  # fmt: skip
    add("running", "gauge", "Requests that are being answered.", {"": engine.running})
    add("waiting", "gauge", "Requests in the queue.", {"": engine.waiting})
    return "\n".join(lines) + "\n"
