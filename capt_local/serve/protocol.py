"""OpenAI's interface: from the body of a request to options, from steps to a response.

A field that would change the answer if it were left out is honoured or refused by its name; one
that would not is ignored. No error repeats a text or a name of the request.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.responses import Response

from capt_local.decoding.batching import RequestResult
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import (
    FinishReason,
    GenerateOptions,
    Method,
    Step,
    Structure,
    with_arguments,
)
from capt_local.decoding.structured import schema_structure
from capt_local.documents import Document
from capt_local.errors import CaptError, ContextOverflow, ModelError, TextTooLong, UsageError
from capt_local.prompting.messages import Message, messages_of, refuse_nul
from capt_local.report.json import (
    Answer,
    JsonObject,
    answer_object,
    answer_of,
    new_id,
    step_object,
    with_sources,
)
from capt_local.strict_json import ParseError, convert, parse_object

MOST_CHOICES = 16
_MOST_STOPS = 16
_SEEDS = 1 << 63
_LARGEST_SOURCE = 1 << 18  # characters; a long answer's facts take 10 s there

# Fields of OpenAI's interface, and of servers that follow it, that do not change an answer.
IGNORED = frozenset(
    ("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
     "safety_identifier", "service_tier", "store", "user", "verbosity")
)  # fmt: skip
# Fields that do, with the values at which they do not.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "audio": (), "chat_template": (), "chat_template_kwargs": ({},),
    "echo": (False,), "frequency_penalty": (0,), "function_call": ("none", "auto"),
    "functions": ([],), "grammar": ("",), "guided_choice": (), "guided_grammar": (),
    "guided_json": (), "guided_regex": (), "json_schema": (), "logit_bias": ({},),
    "min_tokens": (0,), "modalities": (["text"],), "prediction": (), "presence_penalty": (0,),
    "reasoning_effort": (), "repetition_penalty": (1,), "stop_token_ids": ([],),
    "structured_outputs": (), "suffix": ("",), "tool_choice": ("none", "auto"), "tools": ([],),
    "top_a": (0,), "typical_p": (1,), "web_search_options": (),
}  # fmt: skip

Limited = Annotated[int, Meta(ge=1, le=1 << 24)]


class StreamOptions(msgspec.Struct):
    """What a stream has beside the answer."""

    include_usage: bool | None = None


class JsonSchema(msgspec.Struct):
    """A JSON schema, as OpenAI wraps it."""

    schema: dict[str, Any]
    name: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class CaptFields(msgspec.Struct):
    """Our extension: candidates of each model, weights, and the source document.

    Attributes:
        top: candidates of each model for each token.
        alpha: a fixed weight of the contrast.
        adapter_scales: of the LoRA adapters of a model, by its role.
        document: the text that facts of the answer are looked for in; None: the prompt.
    """

    top: Annotated[int, Meta(ge=0, le=20)] = 0
    alpha: Annotated[float, Meta(ge=-8, le=8)] | None = None
    adapter_scales: dict[str, list[float]] | None = None
    document: Annotated[str, Meta(max_length=_LARGEST_SOURCE)] | None = None


class _Common(msgspec.Struct, kw_only=True):
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Limited | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1 << 24)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-_SEEDS, le=_SEEDS - 1)] | None = None
    stop: str | list[str] | None = None
    n: Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None = None
    response_format: ResponseFormat | None = None
    capt: CaptFields | None = None


class ChatBody(_Common, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Limited | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class CompletionBody(_Common, kw_only=True):
    """The body of /v1/completions: text to continue, without a chat template."""

    prompt: str | list[str]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


@dataclass(eq=False)
class ApiError(Exception):
    """An error in OpenAI's shape.

    Attributes:
        status: of HTTP.
        message: one line, without any text of the request.
        code: its name; None where OpenAI has none.
        param: the field that is wrong.
        more: further members of the error object.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    more: Mapping[str, object] = field(default_factory=dict)

    def body(self) -> JsonObject:
        """The object that OpenAI's clients read."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
        server = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = kinds.get(self.status, server)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error | dict(self.more)}


def json_response(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON response that caches must not store."""
    more = {"cache-control": "no-store", **(headers or {})}
    return Response(msgspec.json.encode(value), status, more, "application/json")


def invalid(message: str, param: str | None = None) -> ApiError:
    """The error for an invalid value."""
    return ApiError(400, message, "invalid_value", param)


def no_model() -> ApiError:
    """The error for an unknown model name."""
    told = "There is no such model; /v1/models lists them."
    return ApiError(404, told, "model_not_found", "model")


def api_error(error: CaptError, *, began: bool = False) -> ApiError:
    """An error of the engine as one of HTTP.

    Before an answer began, a ModelError is the fault of the request: bytes that a model has no
    token for, roles that its template refuses.
    """
    message = str(error)
    if isinstance(error, ContextOverflow):
        more = {"prompt_tokens_by_model": error.counts, "context_limit": error.limit}
        return ApiError(400, message, "context_length_exceeded", "messages", more)
    if isinstance(error, TextTooLong):
        return ApiError(400, message, "context_length_exceeded", "messages")
    if isinstance(error, UsageError):
        return invalid(message.replace("--", ""))
    if isinstance(error, ModelError) and not began:
        return invalid(message, "messages")
    return ApiError(500, message, error.code)


@dataclass(frozen=True, slots=True)
class Completion:
    """A parsed and checked request.

    Attributes:
        chat: whether it is a conversation; else raw text to continue.
        options: of each of `n` or `best_of` answers, which differ in their seed.
        best: whether the best of them is the answer.
        document: where facts of the answer are looked for; None: in the prompt.
        usage: whether a stream ends with the counts of tokens.
        logprobs: how many candidates are wanted with each token; None: no log-probabilities.
        capt: how many of each model are; None: nothing of ours.
        created: in Unix time.
    """

    chat: bool
    model: str
    prompt: str | tuple[Message, ...]
    options: tuple[GenerateOptions, ...]
    best: bool
    document: str | None
    stream: bool
    usage: bool
    logprobs: int | None
    capt: int | None
    id: str
    created: int

    def head(self, *, chunk: bool = False) -> JsonObject:
        """The members that a response and each chunk of a stream begin with."""
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def read_completion(
    data: bytes, *, chat: bool, models: Mapping[str, Method], options: GenerateOptions,
    check: Callable[[GenerateOptions], None],
) -> Completion:  # fmt: skip
    """Parses the body of a request on top of the `options` of the server.

    `models` are those that it may name, the default first; `check` refuses what the site forbids.

    Raises:
        ApiError: it is invalid or not supported.
    """
    try:
        fields = {key: each for key, each in parse_object(data).items() if each is not None}
    except ParseError as error:
        raise ApiError(400, f"The body cannot be read: {error}.", "invalid_json") from None
    kind: type[ChatBody | CompletionBody] = ChatBody if chat else CompletionBody
    _refuse_unknown(fields, set(kind.__struct_fields__))
    try:
        body = convert(fields, kind)
    except ParseError as error:
        raise invalid(f"{error}.", str(error).split(" ")[0]) from None
    name = body.model or next(iter(models))
    if name not in models:
        raise no_model()
    count, drawn = body.n or 1, body.best_of or 1
    capt = None if body.capt is None else body.capt.top
    if count > 1 and (drawn > 1 or capt is not None):
        raise invalid("capt and best_of are about one answer: leave out n.", "n")
    logprobs = _logprobs(body)
    try:
        made = _options(body, models[name], options, max(logprobs or 0, capt or 0))
        check(made)
        prompt = _prompt(body)
    except UsageError as error:
        raise api_error(error) from None
    if drawn > 1 and not made.sample.temperature:
        raise invalid(
            "best_of needs a temperature above 0, or all answers are the same.", "best_of"
        )
    several = tuple(
        made.with_seed(seed)
        for seed in range(made.sample.seed, made.sample.seed + max(count, drawn))
    )
    wants = body.stream_options
    return Completion(
        chat=chat, model=name, prompt=prompt, options=several, best=drawn > 1,
        document=body.capt.document if body.capt is not None else None, stream=bool(body.stream),
        usage=bool(wants and wants.include_usage), logprobs=logprobs, capt=capt,
        id=new_id(), created=int(time.time()),
    )  # fmt: skip


def _refuse_unknown(fields: Mapping[str, object], known: set[str]) -> None:
    for name, value in fields.items():
        if name in known or name in IGNORED:
            continue
        if name not in NEUTRAL:
            # It may hold anything, so it is not repeated.
            told = "The request has a field that is not known here."
            raise ApiError(400, told, "unknown_parameter")
        # As in JSON: true is not 1.
        same = [isinstance(value, bool) == isinstance(each, bool) for each in NEUTRAL[name]]
        if not any(one and value == each for one, each in zip(same, NEUTRAL[name], strict=True)):
            raise ApiError(400, f"{name} is not supported here.", "unsupported_parameter", name)


def _logprobs(body: ChatBody | CompletionBody) -> int | None:
    if isinstance(body, CompletionBody):
        return body.logprobs
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs goes with logprobs: true.", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _options(
    body: ChatBody | CompletionBody, method: Method, base: GenerateOptions, top: int
) -> GenerateOptions:
    limits = [body.max_tokens, getattr(body, "max_completion_tokens", None)]
    stops = [body.stop] if isinstance(body.stop, str) else body.stop
    if stops is not None and len(stops) > _MOST_STOPS:
        raise invalid(f"stop holds at most {_MOST_STOPS} texts.", "stop")
    own = body.capt or CaptFields()
    alpha = own.alpha
    if alpha is None and method.roles is not None and len(base.combine.alphas) > 1:
        alpha = base.combine.alphas[0]  # it uses the first pair
    given = {
        "temperature": body.temperature, "top_p": body.top_p, "min_p": body.min_p, "top": top,
        "top_k": None if body.top_k is None else max(body.top_k, 0), "method": method,
        "seed": None if body.seed is None else body.seed % _SEEDS, "alpha": alpha,
        "max_tokens": min((each for each in limits if each is not None), default=None),
        "stop": None if stops is None else [text for text in stops if text],
        "structure": _structure(body.response_format), "adapter_scales": own.adapter_scales,
    }  # fmt: skip
    return with_arguments(base, {name: each for name, each in given.items() if each is not None})


def _structure(form: ResponseFormat | None) -> Structure | None:
    if form is None or form.type == "text":
        return None
    schema: dict[str, Any] = {"type": "object"}
    if form.type == "json_schema":
        if form.json_schema is None:
            raise invalid("json_schema is missing.", "response_format")
        schema = form.json_schema.schema
    try:
        return schema_structure(json.dumps(schema).encode(), "The schema")
    except UsageError as error:
        raise invalid(str(error), "response_format") from None


def _prompt(body: ChatBody | CompletionBody) -> str | tuple[Message, ...]:
    if isinstance(body, CompletionBody):
        text = body.prompt
        if isinstance(text, list):
            if len(text) != 1:
                raise invalid("prompt is one text here.", "prompt")
            (text,) = text
        refuse_nul(text, "prompt")
        if not text.strip():
            raise invalid("prompt is empty.", "prompt")
        return text
    try:
        turns = messages_of([_turn(each) for each in body.messages])
    except ParseError as error:
        raise invalid(f"{error}.", "messages") from None
    for turn in turns:
        refuse_nul(turn.content, "A message")
    return turns


def _turn(message: dict[str, Any]) -> dict[str, Any]:
    """Converts a message to the form that `messages_of` takes.

    Empty members that clients copy from an answer are left out. A `name` would become part of the
    prompt of some models, so it is refused there.
    """
    turn = {key: value for key, value in message.items() if value not in (None, [], "")}
    turn.setdefault("content", message.get("content"))
    if turn.get("role") == "developer":
        turn["role"] = "system"
    turn.pop("reasoning_content", None)  # of an earlier answer; templates leave it out, too
    parts = turn["content"]
    if isinstance(parts, list):
        texts = [
            part["text"]
            for part in parts
            if isinstance(part, dict) and part.get("type") == "text"
            and isinstance(part.get("text"), str)
        ]  # fmt: skip
        if len(texts) < len(parts):
            raise ParseError("a message holds a part that is no text")
        turn["content"] = "\n".join(texts)
    return turn


class Writer:
    """Makes the choice number `index` of a response, token by token.

    Attributes:
        generation: of the answer; None before its first token.
    """

    def __init__(self, completion: Completion, index: int) -> None:
        self._steps: list[Step] = []
        self._asked = completion
        self._index = index
        self._text = ""
        self.generation: Generation | None = None

    def add(self, generation: Generation, step: Step) -> JsonObject:
        """The chunk of a stream for one more token."""
        first = not self._steps
        self.generation = generation
        self._steps.append(step)
        if not step.thought:
            self._text += step.piece
        return self._chunk(step.piece, [step], thought=step.thought, first=first)

    def end(self, generation: Generation | None) -> JsonObject:
        """The last chunk: what was held back, and the reason."""
        self.generation = generation or self.generation
        whole = self.generation.text if self.generation is not None else ""
        rest = whole[len(self._text) :] if whole.startswith(self._text) else ""
        chunk = self._chunk(rest, [], first=not self._steps)
        chunk["choices"][0]["finish_reason"] = self.finish
        return chunk

    def chunks(self) -> Iterator[JsonObject]:
        """The chunks of an answer that has ended."""
        made = self.generation
        assert made is not None
        again = Writer(self._asked, self._index)
        yield from (again.add(made, step) for step in self._steps)
        yield again.end(made)

    def result(self, place: int) -> RequestResult:
        """An answer that has ended, as `rerank.ranked` takes it."""
        return RequestResult(place, self.generation, tuple(self._steps), None)

    def answer(self, model: str, notices: Sequence[str]) -> Answer:
        """The record of the answer, which has ended; without provenance."""
        made = self.generation
        assert made is not None
        return answer_of(made, self._steps, model, notices=(*notices, *made.notices))

    @property
    def finish(self) -> str:
        """The reason in OpenAI's words; ours is in `capt`."""
        finish = self.generation.finish if self.generation is not None else None
        return "stop" if finish is FinishReason.STOP else "length"

    def choice(self) -> JsonObject:
        """The choice of a whole response."""
        made = self.generation
        text = made.text if made is not None else ""
        result: JsonObject = {"index": self._index, "finish_reason": self.finish}
        if self._asked.chat:
            message: JsonObject = {"role": "assistant", "content": text, "refusal": None}
            if made is not None and made.thoughts:
                message["reasoning_content"] = made.thoughts
            result["message"] = message
        else:
            result["text"] = text
        own = [step for step in self._steps if not step.thought]
        return result | {"logprobs": self._logprobs(own, 0)}

    def _chunk(
        self, text: str, steps: Sequence[Step], *, thought: bool = False, first: bool = False
    ) -> JsonObject:
        choice: JsonObject = {"index": self._index, "finish_reason": None}
        if self._asked.chat:
            begun: JsonObject = {"role": "assistant"} if first else {}
            choice["delta"] = begun | {"reasoning_content" if thought else "content": text}
        else:
            choice["text"] = "" if thought else text
        shown = () if thought else steps
        choice["logprobs"] = self._logprobs(shown, len(self._text) - len(text)) if shown else None
        return self._asked.head(chunk=True) | {"choices": [choice]}

    def _logprobs(self, steps: Iterable[Step], offset: int) -> JsonObject | None:
        asked = self._asked
        top = max(asked.logprobs or 0, asked.capt or 0)
        if asked.logprobs is None and asked.capt is None:
            return None
        content = [step_object(step, top) for step in steps]
        if asked.capt is None:
            for token in content:
                del token["capt"]
        if asked.chat:
            return {"content": content, "refusal": None}
        offsets: list[int] = []
        for step in steps:
            offsets.append(offset)
            offset += len(step.piece)
        result: JsonObject = {
            "tokens": [token["token"] for token in content],
            "token_logprobs": [token["logprob"] for token in content],
            "top_logprobs": [
                {each["token"]: each["logprob"] for each in token["top_logprobs"]}
                for token in content
            ],
            "text_offset": offsets,
        }
        return result if asked.capt is None else result | {"content": content}


def usage(answers: Sequence[Answer], writers: Sequence[Writer]) -> JsonObject:
    """The counts of tokens of all answers to one prompt."""
    found: JsonObject = answer_object(answers[0])["usage"]
    written = sum(each.tokens for each in answers)
    reasoned = sum(each.thought_tokens for each in answers)
    read = writers[0].generation.prompt_decoded if writers[0].generation is not None else {}
    prompt = found["prompt_tokens"]
    return found | {
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "completion_tokens_details": {"reasoning_tokens": reasoned},
        "prompt_tokens_details": {"cached_tokens": max(0, prompt - [*read.values(), 0][0])},
    }


def grounded(answer: Answer, asked: Completion) -> Answer:
    """The answer with its sources in the document, or else in the prompt."""
    structure, text = asked.options[0].structure, asked.prompt
    if not isinstance(text, str):
        text = "\n".join(turn.content for turn in text if turn.role != "assistant")
    schema = json.loads(structure.source) if structure is not None else None
    if asked.document is not None:
        return with_sources(answer, Document(asked.document), schema, "document")
    if len(text) > _LARGEST_SOURCE:
        return answer
    return with_sources(answer, Document(text), schema, "prompt")


def ours(answer: Answer) -> JsonObject:
    """What the object of `generate --json` holds beside OpenAI's members."""
    whole = answer_object(answer)
    names = ("capt", "timings", "provenance", "ai_label", "human_review")
    found: JsonObject = {name: whole[name] for name in names}
    found["capt"]["finish"] = str(answer.finish) if answer.finish else None
    return found | {"warnings": whole["warnings"]}
