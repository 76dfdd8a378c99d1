"""One record: its id and its prompt, read from the fields of an input line.

A record has a prompt or messages, or, with a template, an id and any fields. Errors name only
fields that the user or this format defines: other names may come from a note.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capt_local.decoding.options import GenerateOptions
from capt_local.documents import Document
from capt_local.errors import CaptError, UsageError
from capt_local.prompting.messages import Message, messages_of, refuse_nul
from capt_local.strict_json import Number, ParseError, convert, size_text, utf8

LONGEST = 1 << 22  # bytes of a record, characters of a prompt
LONGEST_ID = 200  # characters
_SEED_BITS = 53  # a whole number that every JSON reader represents exactly
_FIELD = re.compile(r"\{\{([^{}\n]+)\}\}")
_OTHER_SYNTAX = re.compile(r"\{[{%#]")
_UNPRINTABLE = {type(None): "null", bool: "true or false", list: "a list", dict: "an object"}


class InputChanged(CaptError):
    """A record has other bytes than when the input was checked, or cannot be read any more."""

    code = "input_changed"


class DocumentText(str):
    """The text of a document, as a field of a record."""

    document: Document  # with the pages

    def __new__(cls, document: Document) -> DocumentText:
        text = super().__new__(cls, document.text)
        text.document = document
        return text


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One record.

    Attributes:
        number: of its line (in a table: the first line of its row; in a folder: of the file in
            the order of names), from 1.
        digest: SHA-256 of its bytes in the input, in hexadecimal: a hash of patient text, for
            comparison within a run and not for logs.
        note: the document, or the one field of a template, that answers are checked against; None:
            the prompt.
    """

    number: int
    id: str  # 1 to 200 printable characters, unique in an input
    prompt: str | tuple[Message, ...]  # a conversation ends with the user's turn
    digest: str
    adapter_scales: Mapping[str, tuple[float, ...]] | None = None  # None: those of the run
    note: Document | None = None
    of: str = "prompt"  # what the note is: "document", "prompt", or the name of the field


def record_options(
    options: GenerateOptions, seed: int, scales: Mapping[str, Sequence[float]] | None
) -> GenerateOptions:
    """The options of a run for a record; UsageError where its scales do not go with them."""
    made = options.with_seed(seed)
    if scales is None:
        return made
    pairs = tuple((role, tuple(each)) for role, each in sorted(scales.items()))
    return dataclasses.replace(made, adapter_scales=pairs)


def record_seed(run_seed: int, id: str) -> int:
    """The seed of a record, from the run's seed and the record's id alone.

    So sampling does not depend on the order of the input, on concurrent records or on a resume:
    the first 53 bits of SHA-256 over a prefix, the run's seed and the id, separated by line feeds
    (no id holds one).
    """
    digest = hashlib.sha256(f"capt-local batch seed 1\n{run_seed}\n{id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)


@dataclass(frozen=True, slots=True)
class RecordParser:
    """Parses the fields of a line into a record; raw prompts take no system message."""

    template: RecordTemplate | None = None  # of the user's message; None: records bring prompts
    system: str | None = None  # text of a system message in front of each record
    id_field: str = "id"
    raw: bool = False  # prompts are continued as they are, without a chat template
    prompt_field: str = "prompt"  # where there is no template

    def __post_init__(self) -> None:
        if self.raw and self.system is not None:
            raise UsageError("--raw text has no turns, so --system cannot go with it.")

    def described(self) -> dict[str, Any]:
        """What determines a prompt besides the record, for the fingerprint; texts as digests."""
        system = None if self.system is None else hashlib.sha256(self.system.encode()).hexdigest()
        return {
            "template_sha256": None if self.template is None else self.template.digest,
            "system_sha256": system,
            "id_field": self.id_field,
            "raw": self.raw,
        }

    def parse(self, number: int, fields: Mapping[str, object], digest: str) -> BatchRecord:
        """A record. Raises ParseError if it is none; the message holds nothing of it."""
        if self.template is not None:
            prompt = self._user_turn(self.template.render(fields))
            id = _identifier(fields, self.id_field)
            note, of = self._note({n: fields[n] for n in self.template.names - {self.id_field}})
            return BatchRecord(number, id, prompt, digest, None, note, of)
        id = _identifier(fields, self.id_field)
        known = {self.id_field, self.prompt_field, "messages", "adapter_scales"}
        if not fields.keys() <= known:
            raise ParseError(
                f'it has a field beside the id and "{self.prompt_field}" or "messages" (other '
                "fields need --template; settings are given for the whole run)"
            )
        text, turns = fields.get(self.prompt_field), fields.get("messages")
        if (text is None) == (turns is None):
            raise ParseError(
                f'one of "{self.prompt_field}" and "messages" is needed (other fields need '
                "--template)"
            )
        scales = fields.get("adapter_scales")
        if scales is not None:
            scales = convert(_plain(scales), dict[str, tuple[float, ...]], "adapter_scales")
        if text is None:
            return BatchRecord(number, id, self._turns(turns), digest, scales)
        if not isinstance(text, str):
            raise ParseError('"prompt" must be a text')
        document = text.document if isinstance(text, DocumentText) else None
        prompt, of = self._user_turn(text), "document" if document else "prompt"
        return BatchRecord(number, id, prompt, digest, scales, document, of)

    def _note(self, printed: Mapping[str, object]) -> tuple[Document | None, str]:
        """The source that answers are checked against: the template's only text field."""
        texts = [(name, text) for name, text in printed.items() if isinstance(text, str)]
        if len(texts) != 1:
            return None, "prompt"
        [(name, text)] = texts
        if isinstance(text, DocumentText):
            return text.document, "document"
        return Document(text), name

    def _user_turn(self, text: str) -> str | tuple[Message, ...]:
        if not text.strip():
            raise ParseError("the prompt is empty")
        without_nul(text)
        if self.system is None:
            return text
        return (Message("system", self.system), Message("user", text))

    def _turns(self, value: object) -> tuple[Message, ...]:
        if self.raw:
            raise ParseError('"messages" have no raw form: give a "prompt", or leave out --raw')
        turns = messages_of(value)
        for turn in turns:
            without_nul(turn.content)
        if self.system is None:
            return turns
        if turns[0].role == "system":
            raise ParseError("it has a system message of its own, and --system gives another")
        return (Message("system", self.system), *turns)


def without_nul(text: str, what: str = "a text of it") -> str:
    """The text unchanged. Raises ParseError if it holds a NUL byte."""
    try:
        refuse_nul(text, what)
    except UsageError as error:
        raise ParseError(str(error).rstrip(".")) from None
    return text


def _identifier(fields: Mapping[str, object], key: str) -> str:
    value = fields.get(key)
    if value is None:
        missing = 'no "id"' if key == "id" else "the field of the id is missing"
        raise ParseError(f"{missing} (name the field that identifies a record with --id-field)")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ParseError("the id must be a text or a whole number")
    text = str(value)
    if not 1 <= len(text) <= LONGEST_ID:
        raise ParseError(f"the id must have 1 to {LONGEST_ID} characters")
    if not text.isprintable() or text != text.strip():
        raise ParseError("the id must be printable, with no space at its ends")
    return text


def _plain(value: object) -> object:
    """Converts `Number` to float, at any depth."""
    if isinstance(value, Number):
        return float(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


class RecordTemplate:
    """`--template`: the user's message, with `{{ NAME }}` where the field NAME of a record stands.

    Fields are inserted verbatim in one pass: `{{ }}` inside a field is not expanded.

    Attributes:
        digest: SHA-256 of its bytes.
        names: fields that it names.

    Raises:
        UsageError: it is not UTF-8, names no field, or uses other template syntax.
    """

    def __init__(self, data: bytes) -> None:
        what = "The template (--template)"
        self.digest = hashlib.sha256(data).hexdigest()
        try:
            source = utf8(data).replace("\r\n", "\n").removesuffix("\n")
        except ParseError as error:
            raise UsageError(f"{what} is {error}.") from None
        if found := _OTHER_SYNTAX.search(rest := _FIELD.sub("", source)):
            # The line itself is not repeated: few-shot examples may be patients'.
            line = rest.count("\n", 0, found.start()) + 1
            raise UsageError(
                f"{what}, line {line}: only fields can stand there, written as {{{{ note }}}}."
            )
        # Literal text and field names alternate.
        self._parts = _FIELD.split(source)
        self._parts[1::2] = [name.strip() for name in self._parts[1::2]]
        self.names = frozenset(self._parts[1::2])
        if not self.names:
            raise UsageError(f"{what} names no field: write one as {{{{ note }}}}.")

    def render(self, fields: Mapping[str, object]) -> str:
        """The user's message for a record.

        Raises:
            ParseError: a field is missing or no text or number, or the message is too long.
        """
        texts = {}  # one copy of each field, however often it is named
        for name in sorted(self.names):
            if name not in fields:
                raise ParseError(f'there is no field "{name}", which the template names')
            if kind := _UNPRINTABLE.get(type(fields[name])):
                raise ParseError(f'the field "{name}", which the template names, is {kind}')
            texts[name] = str(fields[name])
        parts = [texts[part] if at % 2 else part for at, part in enumerate(self._parts)]
        if sum(map(len, parts)) > LONGEST:
            raise ParseError(f"the prompt is larger than {size_text(LONGEST)}")
        return "".join(parts)
