"""Conversations as they stand in JSON of others."""

from __future__ import annotations

from capt_local.errors import UsageError
from capt_local.prompt.build import check_turns
from capt_local.prompt.messages import Message, Role
from capt_local.strict.problems import NotReadable

_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}


def messages_of(value: object) -> tuple[Message, ...]:
    """A conversation that ends with the user's turn, from a list of `{role, content}`.

    A content may be a list with one part of text, as some clients write it. A key whose value is
    null is as good as not there; any other key would change what is asked, and is refused.

    Raises:
        NotReadable: it is none, or holds what is not text.
    """
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise NotReadable('"messages" must be a list of objects')
    found = [_message(each) for each in value]
    try:
        check_turns(found)
    except UsageError as error:
        raise NotReadable(str(error).removesuffix(".")) from None
    return tuple(found)


def _message(value: dict[str, object]) -> Message:
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise NotReadable('the "role" of a message must be system, user or assistant')
    if isinstance(content, list) and len(content) == 1:
        (part,) = content
        if isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text":
            content = part["text"]
    if not isinstance(content, str):
        raise NotReadable('the "content" of a message must be a text')
    if any(value[key] is not None for key in value.keys() - {"role", "content"}):
        raise NotReadable('a message holds more than "role" and "content"')
    return Message(_ROLES[role], content)
