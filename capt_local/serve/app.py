"""The endpoints: OpenAI's and those of the page, and their description; the tasks of the page."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from capt_local.decoding.loop import Generation
from capt_local.decoding.options import FinishReason, GenerateOptions, Method, Step
from capt_local.decoding.structured import schema_structure
from capt_local.documents import SUFFIXES
from capt_local.documents import read as read_document
from capt_local.errors import CaptError, UsageError
from capt_local.llama.options import LoadOptions
from capt_local.provenance import provenance
from capt_local.report.html import page
from capt_local.report.json import JsonObject, answer_from
from capt_local.rerank import BestOf, Scorer, ranked
from capt_local.runtime import Runtime
from capt_local.serve.engine import Engine, Job
from capt_local.serve.protocol import (
    IGNORED,
    NEUTRAL,
    ApiError,
    ChatBody,
    Completion,
    CompletionBody,
    Writer,
    api_error,
    grounded,
    invalid,
    json_response,
    no_model,
    ours,
    read_completion,
    usage,
)
from capt_local.strict_json import ParseError, convert, parse_object, read_bytes, utf8
from capt_local.version import __version__

PUBLIC_PATHS = frozenset(
    f"/{name}"
    for name in ("", "page.css", "page.js", "strip.css", "strip.js", "icon.svg", "health",
                 "openapi.json")
)  # fmt: skip
Handler = Callable[[Request], Awaitable[Response]]
_Event = tuple[Generation | None, Step | None, CaptError | None]
_PATIENCE = 10.0  # seconds without a token until a stream begins, or sends a comment
_LARGEST_NOTE, _LARGEST_TASK, _MOST_TASKS = 4 << 20, 1 << 16, 100
# Average characters per token that no meaningful text reaches.
_MOST_A_TOKEN = 32
_MOST_DOCUMENTS = 3  # at once: each may take a minute and 1 GiB
# Methods that are offered only if all models share one vocabulary.
_ONE_VOCABULARY = (Method.PROXY_TUNING, Method.CONTRASTIVE)
_ERRORS = {400: "cannot be understood, done or read by the models", 401: "needs a key",
           403: "Host or origin is not allowed", 404: "no such path or model", 408: "too slow",
           413: "too large", 415: "no file that is read here", 503: "full"}  # fmt: skip
_METRICS = (
    ("requests_total", "counter", "Requests by what became of them."),
    ("prompt_tokens_total", "counter", "Tokens of prompts."),
    ("reused_tokens_total", "counter", "Of these, not read again."),
    ("answer_tokens_total", "counter", "Tokens of answers."),
    ("changed_tokens_total", "counter", "Of these, changed by the expert."),
    ("running", "gauge", "Requests that are being answered."),
    ("waiting", "gauge", "Requests in the queue."),
)


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


class _ClientGone(Exception):
    """The client has gone."""


class _PendingAnswers:
    """The answers to one request, on their way from the engine's thread to the client."""

    def __init__(self, service: Service, completion: Completion, request: Request) -> None:
        self._service = service
        self.completion = completion
        # Of several answers of which the best is shown, all are choice 0.
        self._drawn = [
            Writer(completion, 0 if completion.best else index)
            for index in range(len(completion.options))
        ]
        self._owner = request.headers.get("authorization", "")
        self._best: BestOf | None = None
        self._ranking: asyncio.Future[BestOf] | None = None
        self._ready: Iterator[JsonObject] = iter(())  # chunks of the best answer
        self._events: asyncio.Queue[tuple[int, _Event] | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._jobs = [self._job(index, each) for index, each in enumerate(completion.options)]
        self._open = len(self._jobs)
        self._watch = asyncio.ensure_future(_gone(request))

    def _job(self, index: int, options: GenerateOptions) -> Job:
        def sink(*event: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        return Job(self.completion.prompt, options, not self.completion.chat, sink, self._owner)

    def begin(self) -> None:
        """Queues the jobs. Raises ApiError: the queue is full."""
        self._watch.add_done_callback(lambda _: self._events.put_nowait(None))
        if not self._service.engine.submit(*self._jobs):
            self.close()
            raise ApiError(503, "All places are taken; try again soon.", "overloaded")

    def close(self) -> None:
        """Ends what still runs."""
        for job in self._jobs:
            job.cancelled = True
        self._watch.cancel()

    async def next(self, patience: float | None = None) -> JsonObject | None:
        """The next chunk; None where all answers have ended.

        Raises:
            ApiError: an answer failed.
            TimeoutError: there was none for so many seconds.
            _ClientGone: the client has gone.
        """
        async with asyncio.timeout(patience):
            if not self.completion.best:
                return await self._chunk() if self._open else None
            while self._open:
                await self._chunk()
            if self._best is None:
                if self._ranking is None:
                    call = self._service.engine.call(self._rank)
                    self._ranking = asyncio.wrap_future(call)
                self._best = await asyncio.shield(self._ranking)  # for as long as it takes
                self._ready = self._drawn[0].chunks()
        return next(self._ready, None)

    async def _chunk(self) -> JsonObject:
        found = await self._events.get()
        if found is None:
            raise _ClientGone
        index, (made, step, error) = found
        writer = self._drawn[index]
        if made is not None and step is not None:
            return writer.add(made, step)
        self._open -= 1
        if error is not None:
            raise api_error(error, began=made is not None)
        if made is None or made.finish is FinishReason.INTERRUPTED:
            raise ApiError(503, "The server is stopping; the answer is incomplete.", "stopping")
        return writer.end(made)

    def _rank(self) -> BestOf:
        """Puts the best answer first; in the engine's thread, where the scorer may run."""
        asked, seed = self.completion, self.completion.options[0].sample.seed
        results = [each.result(place) for place, each in enumerate(self._drawn)]
        found = ranked(asked.prompt, asked.options[0], results, self._service.scorer)
        self._drawn = [self._drawn[one.seed - seed] for one in found.candidates]
        return found

    def choices(self) -> list[JsonObject]:
        """The choices of a whole response."""
        return [each.choice() for each in (self._drawn[:1] if self._best else self._drawn)]

    async def tail(self) -> JsonObject:
        """The members after the choices: token counts, and our own fields if requested."""
        return await asyncio.to_thread(self._tail)  # schemas and sources may take seconds

    def _tail(self) -> JsonObject:
        runtime, asked = self._service.engine.runtime, self.completion
        found = [each.answer(runtime.bundle.id, runtime.notices) for each in self._drawn]
        tail: JsonObject = {"usage": usage(found, self._drawn)}
        if asked.capt is None:
            return tail
        answer, options = found[0], asked.options[0]
        if self._best is not None:
            options = options.with_seed(self._best.candidates[0].seed)
            answer = dataclasses.replace(
                answer,
                best_of=self._best.as_object(),
                notices=(*answer.notices, *self._best.notices),
            )
        known = provenance(runtime, options, self._service.load, None, answer.text)
        return tail | ours(grounded(dataclasses.replace(answer, provenance=known), asked))


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Service:
    """The endpoints, as an ASGI application in `app`.

    Args:
        engine: that answers.
        options: of answers, where a request says nothing.
        load: how the models were loaded, for provenance.
        tasks: of the page.
        check: refuses options that the site forbids.
        scorer: that ranks several answers, of which the best is shown; None: their likelihoods.
        reports: whether reports may be made.
    """

    def __init__(
        self,
        engine: Engine,
        options: GenerateOptions,
        load: LoadOptions,
        tasks: Sequence[Task],
        check: Callable[[GenerateOptions], None],
        *,
        scorer: Scorer | None = None,
        reports: bool = True,
    ) -> None:
        self.engine = engine
        self.scorer = scorer
        self.load = load
        self.models = _methods(engine.runtime, options.method)
        self._check = check
        self._read = partial(
            read_completion, models=self.models, options=options, check=self._refuse
        )
        self._reports = reports
        self._documents = 0  # that are being read
        runtime, package = engine.runtime, resources.files("capt_local")
        self._most = _MOST_A_TOKEN * max(each.context_limit for each in runtime.models.values())
        about = {
            "version": __version__,
            "bundle": runtime.bundle.id,
            "title": runtime.bundle.title,
            "models": list(self.models),
            "contexts": {role: each.context_limit for role, each in runtime.models.items()},
            "max_tokens": options.max_tokens,
            "adapters": {
                role: [{"name": one.path.name, "scale": one.scale} for one in each]
                for role, each in runtime.bundle.adapters.items()
            },
            "notices": runtime.notices,
            "reports": reports,
            "documents": [suffix[1:] for suffix, kind in SUFFIXES.items() if kind != "text"],
            "tasks": list(tasks),
            "example": (package / "data" / "demo_note.txt").read_text("utf-8").strip(),
        }
        gets: dict[str, Handler] = {
            "/v1/models": _constant({"object": "list", "data": list(map(_model, self.models))}),
            "/v1/models/{model:path}": self._show_model,
            "/health": _constant({"status": "ok"}),
            "/metrics": self._metrics,
            "/openapi.json": _constant(description()),
            "/about": _constant(about),
        }
        posts: dict[str, Handler] = {
            "/v1/chat/completions": partial(self._complete, chat=True),
            "/v1/completions": partial(self._complete, chat=False),
            "/count": self._count,
            "/report": self._report,
            "/documents": self._document,
        }
        routes: list[BaseRoute] = [Route(path, each) for path, each in gets.items()]
        routes += [Route(path, each, methods=["POST"]) for path, each in posts.items()]
        page, strip = ("capt_local.serve", "static"), ("capt_local.report", "page")
        routes.append(Mount("/", StaticFiles(packages=[page, strip], html=True)))
        self.app = Router(routes)  # the guard answers what is raised

    def _refuse(self, options: GenerateOptions) -> None:
        self._check(options)
        adapters = self.engine.runtime.bundle.adapters
        for role, scales in options.adapter_scales:
            if len(scales) != len(adapters.get(role, ())):
                raise invalid("adapter_scales has a scale for each adapter of a model.", "capt")

    async def _asked(self, request: Request, *, chat: bool) -> Completion:
        """Parses a request; refuses a text so long that tokenizing it would delay all others."""
        found = await asyncio.to_thread(self._read, await request.body(), chat=chat)
        prompt = found.prompt
        texts = [prompt] if isinstance(prompt, str) else [one.content for one in prompt]
        size, turns = sum(map(len, texts)), len(texts)
        if size + turns * _MOST_A_TOKEN > self._most:  # a turn has a token at least
            told = f"{size:,} characters in {turns:,} messages never fit into the contexts."
            raise ApiError(400, told, "context_length_exceeded", "messages")
        return found

    async def _complete(self, request: Request, *, chat: bool) -> Response:
        completion = await self._asked(request, chat=chat)
        answers = _PendingAnswers(self, completion, request)
        answers.begin()
        first: JsonObject | None = {}
        try:
            with contextlib.suppress(TimeoutError):
                first = await answers.next(_PATIENCE if completion.stream else None)
            if completion.stream:
                return _Stream(_chunks(answers, first))
            while await answers.next() is not None:
                pass
            whole = completion.head() | {"choices": answers.choices()}
            whole |= await answers.tail()
        except BaseException as error:
            answers.close()
            if isinstance(error, _ClientGone):
                return Response()
            raise
        answers.close()
        return json_response(whole)

    async def _show_model(self, request: Request) -> Response:
        if (name := request.path_params["model"]) not in self.models:
            raise no_model()
        return json_response(_model(name))

    async def _metrics(self, _: Request) -> Response:
        """Counts in the text format of Prometheus; no name or value of a request."""
        counts, lines = self.engine.metrics(), list[str]()
        for name, kind, help in _METRICS:
            lines.append(f"# HELP capt_{name} {help}\n# TYPE capt_{name} {kind}")
            own = (each for each in counts if each.partition("{")[0] == name)
            lines.extend(f"capt_{each} {counts[each]}" for each in own)
        return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def _count(self, request: Request) -> Response:
        """Tokens that a conversation takes in each model."""
        prompt, runtime = (await self._asked(request, chat=True)).prompt, self.engine.runtime
        found = await asyncio.wrap_future(self.engine.call(lambda: runtime.count(prompt)))
        counts = {role: {"tokens": size, "limit": most} for role, (size, most) in found.items()}
        return json_response(counts)

    async def _report(self, request: Request) -> Response:
        """The HTML report of an answer that the page has."""
        if not self._reports:
            raise ApiError(403, "Reports are forbidden on this machine.", "forbidden")
        made = await asyncio.to_thread(_report, await request.body())
        kind = "text/html; charset=utf-8"
        return Response(made, media_type=kind, headers={"cache-control": "no-store"})

    async def _document(self, request: Request) -> Response:
        """The text of a file."""
        kind = "." + request.query_params.get("kind", "")
        if kind not in SUFFIXES:
            raise ApiError(415, "Files of this kind are not read here.", "unsupported_file")
        if self._documents >= _MOST_DOCUMENTS:
            raise ApiError(503, "Other files are being read; try again soon.", "overloaded")
        self._documents += 1
        try:
            data, name = await request.body(), f"file{kind}"
            found = await asyncio.to_thread(read_document, data, name=name, what="The file")
        finally:
            self._documents -= 1
        return json_response({"text": found.text, "notices": found.notices})


def _constant(value: object) -> Handler:
    async def answer(_: Request) -> Response:
        return json_response(value)

    return answer


def _methods(runtime: Runtime, default: Method) -> dict[str, Method]:
    """The methods that the models can do, by the names that requests may give."""
    name, vocabularies = runtime.bundle.id, [each.vocabulary for each in runtime.models.values()]
    shared = all(vocabularies[0].same_as(each) for each in vocabularies[1:])
    return {name: default} | {
        f"{name}:{method}": method
        for method in Method
        if set(method.roles or ("target", "expert", "base")) <= set(runtime.models)
        and (shared or method not in _ONE_VOCABULARY)
    }


async def _chunks(answers: _PendingAnswers, chunk: JsonObject | None) -> AsyncIterator[bytes]:
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
    except _ClientGone:
        pass
    except ApiError as error:
        yield _event(error.body())
    finally:
        answers.close()


def _event(value: JsonObject) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _model(name: str) -> JsonObject:
    return {"id": name, "object": "model", "created": 0, "owned_by": "capt-local"}


def _report(data: bytes) -> str:
    try:
        fields = parse_object(data)
    except ParseError as error:
        raise ApiError(400, f"The body cannot be read: {error}.", "invalid_json") from None
    note = fields.get("note")
    if not isinstance(note, str) or len(note) > _LARGEST_NOTE:
        raise invalid("note is no text, or too long.", "note")
    answer = answer_from(fields.get("answer"))
    if (alone := fields.get("alone")) is not None:
        answer = dataclasses.replace(answer, alone=answer_from(alone))
    return page(answer, note)


def description() -> dict[str, Any]:
    """The description of the endpoints as OpenAPI 3.1, with the schemas used for validation."""
    (chat, completion), schemas = msgspec.json.schema_components(
        [ChatBody, CompletionBody], ref_template="#/components/schemas/{name}"
    )
    for name in ("ChatBody", "CompletionBody"):
        fields = schemas[name]["properties"]
        fields |= {each: {} for each in sorted(IGNORED)}
        fields |= {each: {"enum": [*values, None]} for each, values in sorted(NEUTRAL.items())}
        schemas[name]["additionalProperties"] = False
    schemas["ChatBody"]["properties"]["messages"] = {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["role", "content"],
            "properties": {
                "role": {"enum": ["system", "developer", "user", "assistant"]},
                "content": {"type": "string", "minLength": 1},
            },
            "additionalProperties": False,
        },
    }
    schemas["Error"] = {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "object", "required": ["message", "type", "code"]}},
    }
    kind = {"name": "kind", "in": "query", "required": True, "schema": {"type": "string"}}
    model = kind | {"name": "model", "in": "path"}
    paths: dict[str, Any] = {
        "/v1/chat/completions": {"post": _operation("An answer", chat)},
        "/v1/completions": {"post": _operation("A text, continued", completion)},
        "/count": {"post": _operation("Tokens of a conversation", chat)},
        "/report": {"post": _operation("An answer as a page", {"required": ["answer", "note"]})},
        "/documents": {"post": _operation("The text of a file", {}) | {"parameters": [kind]}},
        "/v1/models": {"get": _operation("The bundle and its methods")},
        "/v1/models/{model}": {"get": _operation("One of them") | {"parameters": [model]}},
        "/about": {"get": _operation("Models, limits and tasks")},
        "/metrics": {"get": _operation("Counts for Prometheus")},
        "/health": {"get": _operation("Whether it runs") | {"security": []}},
    }
    bearer = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "capt-local", "version": __version__},
        "security": [{"key": []}],
        "components": {"schemas": schemas, "securitySchemes": bearer},
        "paths": paths,
    }


def _operation(summary: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    kinds = ("application/json", "text/event-stream", "text/html", "text/plain")
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: dict[str, Any] = {
        str(code): {"description": why, "content": error} for code, why in _ERRORS.items()
    }
    responses["200"] = {"description": summary, "content": {kind: {} for kind in kinds}}
    found: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return found


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A task of the page: an instruction that is put after the note.

    Attributes:
        name: of its file.
        title: on its button.
        prompt: the instruction that follows the note; empty: the user types it.
        hint: a line about it.
        order: position on the page, smallest first.
        max_tokens: of the answer; None: as the server has it.
        json_schema: the form of the answer, as the text of a JSON schema; a list of objects in it
            is shown as a table.
    """

    title: Annotated[str, Meta(min_length=1, max_length=60)]
    prompt: Annotated[str, Meta(max_length=8000)] = ""
    hint: Annotated[str, Meta(max_length=300)] = ""
    order: int = 100
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    json_schema: str = ""
    name: str = ""


def library(folder: Path | None = None) -> list[Task]:
    """All tasks in their order; those in the folder of the site win over ours of the same name.

    Raises:
        UsageError: the folder or a file cannot be read, or is no task; names the file.
    """
    found: dict[str, Task] = {}
    for entry in (resources.files("capt_local.serve") / "tasks").iterdir():
        if entry.name.endswith(".toml"):
            name = entry.name.removesuffix(".toml")
            found[name] = _task(entry.read_bytes(), name)
    if folder is not None:
        try:
            files = sorted(folder.glob("*.toml"))
        except OSError as error:
            raise UsageError(f"{folder} cannot be read: {error.strerror}.") from None
        if not folder.is_dir():
            raise UsageError(f"{folder} (--tasks) is no folder.")
        if len(files) > _MOST_TASKS:
            raise UsageError(f"{folder} has more than {_MOST_TASKS} tasks.")
        for file in files:
            data = read_bytes(file, str(file), largest=_LARGEST_TASK)
            found[file.stem] = _task(data, file.stem)
    return sorted(found.values(), key=lambda task: (task.order, task.title))


def _task(data: bytes, name: str) -> Task:
    try:
        fields: dict[str, Any] = tomllib.loads(utf8(data))
        task = convert(fields | {"name": name}, Task)
    except (tomllib.TOMLDecodeError, ParseError, RecursionError) as error:
        what = f": {error}" if isinstance(error, ParseError) else " (it is not TOML)"
        raise UsageError(f"The task {name}.toml cannot be used{what}.") from None
    if task.json_schema:
        schema_structure(task.json_schema.encode(), f"The json_schema of the task {name}.toml")
    return task
