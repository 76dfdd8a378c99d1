"""One record: its id, prompt and settings, read from the fields of an input line.

A record has one of three forms: a line of OpenAI's batches (`custom_id`, `method`, `url`, `body`),
the short form (`id`, and `prompt` or `messages`), or, with a template, any fields with an id.
Errors name a field only if the user or OpenAI's format names it: others may come out of a note.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from jinja2 import StrictUndefined, Template, meta
from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError

from capt_local.decoding.options import GenerateOptions
from capt_local.documents import Document
from capt_local.errors import CaptError, UsageError
from capt_local.prompting.messages import Message, messages_of, refuse_nul
from capt_local.prompting.sandbox import LimitReached, Limits, Meter, Sandbox
from capt_local.strict_json import NotReadable, Number, convert, size_text, utf8

LONGEST_ID = 200  # characters
LARGEST_TEMPLATE = 1 << 16  # bytes
# A text may be as long as a line of the input, and be filtered a few times.
TEMPLATE_LIMITS = Limits(value=1 << 22, output=1 << 22, work=4_000_000, seconds=2.0)
_SEED_BITS = 53  # a whole number that every JSON reader represents exactly
_BATCH_LINE = frozenset(("custom_id", "method", "url", "body"))

# Parameters of OpenAI's API and of servers that follow it, with the values that change nothing.
_WITHOUT_EFFECT: Mapping[str, tuple[object, ...]] = {
    "user": (),
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "store": (False,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "top_k": (0, -1),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
}
# What goes for the whole run instead.
_INSTEAD = {
    **dict.fromkeys(("response_format", "json_schema", "guided_json"), "--json-schema"),
    **dict.fromkeys(("grammar", "guided_grammar"), "--grammar-file"),
    "top_k": "--top-k",
    "min_p": "--min-p",
    "repetition_penalty": "--repeat-penalty",
}


class MissingId(NotReadable):
    """A record has no id; `readers` adds which fields look like one."""


class InputChanged(CaptError):
    """A record has other bytes than when the input was checked, or cannot be read any more."""

    code = "input_changed"


class TemplateFailed(CaptError):
    """A template fails now on a record that passed the check: time or memory ran out."""

    code = "template_error"


_StopText = Annotated[str, msgspec.Meta(min_length=1)]


class RecordSettings(msgspec.Struct, frozen=True):
    """What a record sets for itself; None: as the run has it. See `GenerateOptions`.

    `logprobs` decides whether the output line holds log-probabilities, `top_logprobs` how many
    candidates a token has there.
    """

    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] | None = None
    stop: Annotated[tuple[_StopText, ...], msgspec.Meta(max_length=16)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=100)] | None = None
    adapter_scales: dict[str, tuple[float, ...]] | None = None

    def applied(self, options: GenerateOptions) -> GenerateOptions:
        """The options of the run with what the record sets.

        Raises:
            UsageError: they do not go together, or a value has no meaning.
        """

        def present(**values: Any) -> dict[str, Any]:
            return {name: value for name, value in values.items() if value is not None}

        drawn = present(temperature=self.temperature, top_p=self.top_p, seed=self.seed)
        scales = self.adapter_scales and tuple(sorted(self.adapter_scales.items()))
        whole = present(
            max_tokens=self.max_tokens,
            stop=self.stop,
            top=self.top_logprobs,
            adapter_scales=scales,
        )
        sample = dataclasses.replace(options.sample, **drawn)
        return dataclasses.replace(options, sample=sample, **whole)


class DocumentText(str):
    """The text of a document, as a field of a record.

    Attributes:
        document: with the pages.
    """

    document: Document

    @classmethod
    def of(cls, document: Document) -> DocumentText:
        """That of a document."""
        text = cls(document.text)
        text.document = document
        return text


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One record.

    Attributes:
        number: of its line (in a table: the first line of its row; in a folder: of the file in
            the order of names), from 1.
        id: 1 to 200 printable characters, unique in an input.
        custom_id: the same where the line is one of OpenAI's batches, else None.
        prompt: a text, or a conversation that ends with the user's turn.
        settings: its own.
        digest: SHA-256 of its bytes in the input, in hexadecimal: a hash of patient text, for
            comparison within a run and not for logs.
        note: the document, or the one field of a template, that answers are checked against; None:
            the prompt.
        of: what that is: "document", "prompt", or the name of the field.
    """

    number: int
    id: str
    custom_id: str | None
    prompt: str | tuple[Message, ...]
    settings: RecordSettings
    digest: str
    note: Document | None = None
    of: str = "prompt"

    def request_settings(self, options: GenerateOptions) -> RecordSettings:
        """Its settings with a seed; without one of its own, that of `record_seed`.

        Raises:
            UsageError: a value has no meaning, or does not go with the run's options.
        """
        seed = self.settings.seed
        if seed is None:
            seed = record_seed(options.sample.seed, self.id)
        settings = msgspec.structs.replace(self.settings, seed=seed)
        settings.applied(options)
        return settings


def record_seed(run_seed: int, id: str) -> int:
    """The seed of a record, from the run's seed and the record's id alone.

    So a record draws the same tokens whatever its place in the input, whatever runs beside it, and
    before or after a stop: the first 53 bits of SHA-256 over a mark, the run's seed and the id,
    separated by line feeds (no id holds one).
    """
    digest = hashlib.sha256(f"capt-local batch seed 1\n{run_seed}\n{id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)


@dataclass(frozen=True, slots=True)
class RecordParser:
    """From the fields of a line to a record.

    Attributes:
        template: writes the user's message; None: records bring prompts of their own.
        system: text of a system message in front of each record; None for none.
        id_field: which field is the id.
        raw: prompts are continued as they are, without a chat template.
        prompt_field: which field is the prompt where there is no template.

    Raises:
        UsageError: raw prompts with a system text.
    """

    template: RecordTemplate | None = None
    system: str | None = None
    id_field: str = "id"
    raw: bool = False
    prompt_field: str = "prompt"

    def __post_init__(self) -> None:
        """Refuses what does not go together."""
        if self.raw and self.system is not None:
            raise UsageError("--raw text has no turns, so --system cannot go with it.")

    def described(self) -> dict[str, Any]:
        """What decides the prompt of a record besides the record; texts as digests."""
        system = None if self.system is None else hashlib.sha256(self.system.encode()).hexdigest()
        return {
            "template_sha256": None if self.template is None else self.template.digest,
            "system_sha256": system,
            "id_field": self.id_field,
            "raw": self.raw,
        }

    def parse(self, number: int, fields: Mapping[str, object], digest: str) -> BatchRecord:
        """A record.

        Raises:
            NotReadable: it is none; the message holds nothing of it.
        """
        if self.template is not None:
            filled = self.template.render(fields)
            id = _identifier(fields, self.id_field)
            prompt, note, of = self._user_turn(filled), *self._note(fields)
            return BatchRecord(number, id, None, prompt, RecordSettings(), digest, note, of)
        if fields.keys().isdisjoint(_BATCH_LINE):
            id, custom = _identifier(fields, self.id_field), ""
            rest = {key: value for key, value in fields.items() if key != self.id_field}
        else:
            id, rest = _batch_line(fields)
            custom = id
        text, turns = rest.pop(self.prompt_field, None), rest.pop("messages", None)
        if custom and not isinstance(rest.pop("model", None), str | None):
            raise NotReadable('"model" must be a text')
        if custom and (turns is None or text is not None):
            raise NotReadable('a "body" has "messages", and no "prompt"')
        if text is not None and turns is not None:
            raise NotReadable('"prompt" and "messages" do not go together')
        if text is None and turns is None:
            raise NotReadable(
                'either "prompt" or "messages" is needed (other fields need --template)'
            )
        if text is not None and not isinstance(text, str):
            raise NotReadable('"prompt" must be a text')
        settings = read_settings(rest)
        prompt = self._user_turn(text) if text is not None else self._turns(turns)
        note, of = None, "prompt"
        if isinstance(text, DocumentText):
            note, of = text.document, "document"
        return BatchRecord(number, id, custom or None, prompt, settings, digest, note, of)

    def _note(self, fields: Mapping[str, object]) -> tuple[Document | None, str]:
        """What answers are checked against: the one text that the template puts into prompts."""
        assert self.template is not None
        named = self.template.names - {self.id_field, "record"}
        texts = {name: text for name in named if isinstance(text := fields.get(name), str)}
        if len(texts) != 1:
            return None, "prompt"
        [(name, text)] = texts.items()
        if isinstance(text, DocumentText):
            return text.document, "document"
        return Document(text), name

    def _user_turn(self, text: str) -> str | tuple[Message, ...]:
        if not text.strip():
            raise NotReadable("the prompt is empty")
        not_nul(text)
        if self.system is None:
            return text
        return (Message("system", self.system), Message("user", text))

    def _turns(self, value: object) -> tuple[Message, ...]:
        if self.raw:
            raise NotReadable('"messages" have no raw form: give a "prompt", or leave out --raw')
        turns = messages_of(value)
        for turn in turns:
            not_nul(turn.content)
        if self.system is None:
            return turns
        if turns[0].role == "system":
            raise NotReadable("it has a system message of its own, and --system gives another")
        return (Message("system", self.system), *turns)


def not_nul(text: str, what: str = "a text of it") -> str:
    """A text as it is. Raises NotReadable if it holds a NUL byte."""
    try:
        refuse_nul(text, what)
    except UsageError as error:
        raise NotReadable(str(error).rstrip(".")) from None
    return text


def _identifier(fields: Mapping[str, object], key: str) -> str:
    value = fields.get(key)
    if value is None:
        known = key in ("id", "custom_id")
        raise MissingId(f'no "{key}"' if known else "the field of the id (--id-field) is missing")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise NotReadable("the id must be a text or a whole number")
    text = str(value)
    if not 1 <= len(text) <= LONGEST_ID:
        raise NotReadable(f"the id must have 1 to {LONGEST_ID} characters")
    if not text.isprintable() or text != text.strip():
        raise NotReadable("the id must be printable, with no space at its ends")
    return text


def requested_model(fields: Mapping[str, object]) -> object:
    """The model that a line of OpenAI's batches names; None where it names none."""
    body = fields.get("body")
    return body.get("model") if isinstance(body, dict) else None


def _batch_line(fields: Mapping[str, object]) -> tuple[str, dict[str, Any]]:
    """The id and the body of a line of OpenAI's batches."""
    if not fields.keys() <= _BATCH_LINE:
        raise NotReadable("beside custom_id, method, url and body there is another field")
    id = _identifier(fields, "custom_id")
    for name, only in (("method", "POST"), ("url", "/v1/chat/completions")):
        if fields.get(name, only) != only:
            raise NotReadable(f'"{name}" must be {only}')
    body = fields.get("body")
    if not isinstance(body, dict):
        raise NotReadable('"body" must be an object')
    return id, dict(body)


def read_settings(fields: Mapping[str, object]) -> RecordSettings:
    """The settings of a record, by OpenAI's names. Null is the same as absent.

    What is not supported is refused by name, since an answer made without it would be another one.

    Raises:
        NotReadable: a field is not supported or unknown, or its value has no meaning.
    """
    values = {name: _plain(value) for name, value in fields.items() if value is not None}
    if "max_completion_tokens" in values:
        if "max_tokens" in values:
            raise NotReadable('"max_tokens" and "max_completion_tokens" do not go together')
        values["max_tokens"] = values.pop("max_completion_tokens")
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]
    known = {name: values.pop(name) for name in RecordSettings.__struct_fields__ if name in values}
    for name, value in values.items():
        # As in JSON: true is not 1.
        neutral = any(
            isinstance(value, bool) == isinstance(other, bool) and value == other
            for other in _WITHOUT_EFFECT.get(name, ())
        )
        if not neutral and name not in {*_WITHOUT_EFFECT, *_INSTEAD}:
            known_names = ", ".join(RecordSettings.__struct_fields__)
            raise NotReadable(f"it has a field that is not one of {known_names}")
        if not neutral:
            hint = f": give {_INSTEAD[name]} for the whole run" if name in _INSTEAD else ""
            this = "this " if name in _WITHOUT_EFFECT else ""
            raise NotReadable(f'{this}"{name}" is not supported{hint}')
    settings = convert(known, RecordSettings)
    if settings.top_logprobs is not None and not settings.logprobs:
        raise NotReadable('"top_logprobs" goes with "logprobs": true')
    return settings


def _plain(value: object) -> object:
    """The value with numbers of Python."""
    if isinstance(value, Number):
        return float(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


class RecordTemplate:
    """`--template`: the user's message, written around the fields of a record.

    Jinja in the sandbox of the chat templates, with the limits of a text. It is rendered in one
    pass, so what stands in a field stays text. A missing field is an error, unless the template
    tests whether it is defined; so is printing a value that is no text or number.

    Attributes:
        digest: SHA-256 of its bytes.
        names: fields that it names.

    Args:
        data: of its file.
        limits: for one record.

    Raises:
        UsageError: it is too large, not UTF-8 or not a template, or names no field.
    """

    def __init__(self, data: bytes, limits: Limits = TEMPLATE_LIMITS) -> None:
        what = "The template (--template)"
        if len(data) > LARGEST_TEMPLATE:
            raise UsageError(f"{what} is larger than {size_text(LARGEST_TEMPLATE)}.")
        self.digest = hashlib.sha256(data).hexdigest()
        self.limits = limits
        self._sandbox = _TextSandbox(limits)
        try:
            source = utf8(data)
            self.names = frozenset(meta.find_undeclared_variables(self._sandbox.parse(source)))
            code = self._sandbox.compile(self._sandbox.metered(source))
        except NotReadable as error:
            raise UsageError(f"{what} is {error}.") from None
        except TemplateSyntaxError as error:
            # The message would hold words of it: few-shot examples may be patients'.
            raise UsageError(f"{what} has a mistake in line {error.lineno}.") from None
        except LimitReached as error:
            raise UsageError(f"{what} was refused: {error}.") from None
        except Exception as error:  # a program may fail in any way
            raise UsageError(f"{what} fails with a {type(error).__name__}.") from None
        self.names -= self._sandbox.globals.keys()
        if not self.names:
            raise UsageError(f"{what} names no field: write one as {{{{ note }}}}.")
        self._code = Template.from_code(self._sandbox, code, self._sandbox.make_globals(None))

    def render(self, fields: Mapping[str, object]) -> str:
        """The user's message for a record; `record` in it is all of `fields`.

        Raises:
            NotReadable: a field is missing or no text, or it takes too much. The message holds
                nothing of the record.
        """
        self._sandbox.meter = Meter(self.limits)
        try:
            return self._code.render({**fields, "record": fields})
        except _NotPrintable as error:
            raise NotReadable(str(error)) from None
        except LimitReached as error:
            raise NotReadable(f"the template was stopped: {error}") from None
        except UndefinedError as error:
            # The message may name a part of a note, so only names of the template are repeated.
            for name in sorted(self.names - fields.keys()):
                if f"'{name}' is undefined" == error.message:
                    raise NotReadable(
                        f'there is no field "{name}", which the template names'
                    ) from None
            raise NotReadable("the template asks for a value that is not there") from None
        except SecurityError:
            raise NotReadable("the template does what templates may not do") from None
        except Exception as error:  # a program may fail in any way
            raise NotReadable(f"the template fails with a {type(error).__name__}") from None


class _NotPrintable(Exception):
    """A template prints a value that is no text; the message names its kind."""


class _TextSandbox(Sandbox):
    """The sandbox for the fields of a record."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.undefined = StrictUndefined

    def emit(self, value: object) -> str:
        """A piece of output: a text or a number."""
        return super().emit(_printable(value))

    def concat_metered(self, *values: object) -> str:
        """The operator `~`."""
        return super().concat_metered(*map(_printable, values))


_UNPRINTABLE: Mapping[type, str] = {
    type(None): "a value that is null", bool: "a value that is true or false",
    list: "a list", tuple: "a list", dict: "an object",
}  # fmt: skip


def _printable(value: object) -> object:
    """Refuses what Python would print in a way of its own: None, True, lists."""
    if kind := _UNPRINTABLE.get(type(value)):
        raise _NotPrintable(
            f"the template prints {kind}: take its parts, or write {{{{ ... | tojson }}}}"
        )
    return value
