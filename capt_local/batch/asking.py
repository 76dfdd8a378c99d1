"""From the fields of a record to what is asked.

A record has one of three forms: a line of OpenAI's batches (`custom_id`, `method`, `url`, `body`),
the short form (`id`, and `prompt` or `messages`), or, with a template, any fields with an id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capt_local.batch.parameters import settings_of
from capt_local.batch.records import Record, RecordSettings
from capt_local.batch.template import RecordTemplate
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message, messages_of
from capt_local.strict.problems import NotReadable

LONGEST_ID = 200  # characters
_METHOD, _URL = "POST", "/v1/chat/completions"
_BATCH_LINE = frozenset(("custom_id", "method", "url", "body"))


@dataclass(frozen=True, slots=True)
class Asking:
    """How the fields of records become prompts.

    Attributes:
        template: writes the user's message; None: records bring prompts of their own.
        system: text of a system message in front of each record; None for none.
        id_field: which field is the id.
        raw: prompts are texts to go on with, without a chat template.
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
        """What decides the prompt of a record besides the record, without any text of it."""
        system = None if self.system is None else self.system.encode()
        return {
            "template_sha256": None if self.template is None else self.template.digest,
            "system_sha256": None if system is None else hashlib.sha256(system).hexdigest(),
            "id_field": self.id_field,
            "raw": self.raw,
        }

    def record(self, number: int, fields: Mapping[str, object], digest: str) -> Record:
        """A record.

        Args:
            number: of its line.
            fields: that stand there.
            digest: of its bytes.

        Raises:
            NotReadable: it is no record; says nothing of what stands in it.
        """
        if self.template is not None:
            text = self.template.text(fields)
            name = identifier(fields, self.id_field)
            return Record(number, name, None, self._one(text), RecordSettings(), digest)
        if not fields.keys().isdisjoint(_BATCH_LINE):
            name, body = _batch_line(fields)
            return self._own(number, name, name, body, digest)
        name = identifier(fields, self.id_field)
        left = {key: value for key, value in fields.items() if key != self.id_field}
        return self._own(number, name, None, left, digest)

    def _own(
        self, number: int, name: str, custom: str | None, fields: dict[str, Any], digest: str
    ) -> Record:
        """A record that brings its own prompt, and perhaps settings."""
        text, messages = fields.pop(self.prompt_field, None), fields.pop("messages", None)
        if custom is not None and not isinstance(fields.pop("model", None), str | None):
            raise NotReadable('"model" must be a text')
        if (text is None) == (messages is None):
            raise NotReadable(_wanted(custom is not None, both=text is not None))
        if custom is not None and text is not None:
            raise NotReadable('a "body" has "messages", not "prompt"')
        if text is not None and not isinstance(text, str):
            raise NotReadable('"prompt" must be a text')
        settings = settings_of(fields)
        asked = self._one(text) if text is not None else self._turns(messages)
        return Record(number, name, custom, asked, settings, digest)

    def _one(self, text: str) -> str | tuple[Message, ...]:
        if not text.strip():
            raise NotReadable("the prompt is empty")
        if self.system is None:
            return _plain(text)
        return (Message("system", self.system), Message("user", _plain(text)))

    def _turns(self, value: object) -> tuple[Message, ...]:
        if self.raw:
            raise NotReadable('"messages" have no raw form: give a "prompt", or leave out --raw')
        turns = messages_of(value)
        for turn in turns:
            _plain(turn.content)
        if self.system is None:
            return turns
        if turns[0].role == "system":
            raise NotReadable("it has a system message of its own, and --system gives another")
        return (Message("system", self.system), *turns)


def identifier(fields: Mapping[str, object], key: str) -> str:
    """The id of a record.

    Raises:
        NotReadable: there is none, or it is not printable text of 1 to 200 characters.
    """
    value = fields.get(key)
    if value is None:
        raise NotReadable(f'no "{key}"' if key in _IDS else "the field of the id is not there")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise NotReadable("the id must be a text or a whole number")
    text = str(value)
    if not 1 <= len(text) <= LONGEST_ID:
        raise NotReadable(f"the id must have 1 to {LONGEST_ID} characters")
    if not text.isprintable() or text != text.strip():
        raise NotReadable("the id must be printable, with no space at its ends")
    return text


def model_of(fields: Mapping[str, object]) -> object:
    """The model that a line of OpenAI's batches asks for; None where it asks for none."""
    body = fields.get("body")
    return body.get("model") if isinstance(body, dict) else None


_IDS = ("id", "custom_id")


def _batch_line(fields: Mapping[str, object]) -> tuple[str, dict[str, Any]]:
    """The id and the body of a line of OpenAI's batches."""
    if not fields.keys() <= _BATCH_LINE:
        raise NotReadable("beside custom_id, method, url and body there is another field")
    name = identifier(fields, "custom_id")
    if fields.get("method", _METHOD) != _METHOD:
        raise NotReadable(f'"method" must be {_METHOD}')
    if fields.get("url", _URL) != _URL:
        raise NotReadable(f'"url" must be {_URL}')
    body = fields.get("body")
    if not isinstance(body, dict):
        raise NotReadable('"body" must be an object')
    return name, dict(body)


def _wanted(batch: bool, *, both: bool) -> str:
    if batch:
        return 'a "body" has "messages", and no "prompt"'
    if both:
        return '"prompt" and "messages" do not go together'
    return 'either "prompt" or "messages" is needed (other fields need --template)'


def _plain(text: str) -> str:
    """Refuses texts that are none."""
    if "\0" in text:
        raise NotReadable("a text holds a zero character (NUL)")
    return text
