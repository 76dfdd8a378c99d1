"""What is asked, and what it becomes for one model.

A prompt is a row of segments: scaffolding that a template wrote, and text that people or models
wrote. The text is the same bytes for all three models; only its tokens differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from capt_local.errors import UsageError
from capt_local.strict_json import NotReadable

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)
Pair = tuple[bytes, bytes]


def refuse_nul(text: str | bytes, what: str) -> None:
    """Refuses text with a NUL byte: C strings end there, so the engine would cut it unnoticed.

    The one rule for control characters in all verbs; others pass as they are. The UsageError has
    the position in the text's UTF-8, and `what` for the text.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    place = data.find(0)
    if place >= 0:
        raise UsageError(f"{what} holds a NUL byte (0x00) at byte {place} (counted from 0).")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one origin, in one model's vocabulary."""

    tokens: tuple[int, ...]
    # The bytes that a person or model wrote; None for scaffolding (BOS included). A leading space
    # that the tokenizer adds by itself is in the tokens but not here.
    text: bytes | None = None
    evidence: bool = False  # whether the user wrote it, so that it may weigh the contrast


@dataclass(frozen=True, slots=True)
class ReasoningMarkers:
    """What stands where reasoning begins and ends; control tokens as their names."""

    # What may stand at the beginning of the output, and whether reasoning follows it; likewise
    # behind reasoning.
    begin: tuple[tuple[bytes, bool], ...]
    within: tuple[tuple[bytes, bool], ...]
    answers: tuple[Pair, ...] = ()  # what may stand around the answer itself

    def opened_by(self, scaffold: bytes) -> bool:
        """Whether the template has opened it, in what it wrote behind the last message."""
        end = scaffold.rstrip()
        return any(end.endswith(marker) for marker, reasons in self.begin if reasons)

    def __contains__(self, name: bytes) -> bool:
        """Whether a control token is part of a marker."""
        every = [marker for marker, _ in (*self.begin, *self.within)]
        return any(name in marker for marker in (*every, *(end for _, end in self.answers)))


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt of one model."""

    segments: tuple[Segment, ...]
    # Whether the answer goes on with the text of the last segment (raw text) rather than beginning
    # a text of its own (a turn).
    goes_on: bool = False
    # For a turn: whether the answer is the first text behind a control token, so that a tokenizer
    # with a leading space puts it there; and that space, which is no part of the answer.
    starts_fresh: bool = True
    lead: bytes = b""
    notices: tuple[str, ...] = ()  # what the user should be told about how it was made
    markers: ReasoningMarkers | None = None  # of reasoning that may come first; None: there is none
    turn_ends: frozenset[int] = frozenset()  # what the template writes behind an answer

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for segment in self.segments for token in segment.tokens)


def check_turns(messages: Sequence[Message]) -> None:
    """Refuses (UsageError) a conversation that is empty, out of order, or ends empty."""
    if not messages:
        raise UsageError("The conversation is empty.")
    if any(message.role not in ROLES for message in messages):
        raise UsageError("A message has a role that is not system, user or assistant.")
    if any(message.role == "system" for message in messages[1:]):
        raise UsageError("A system message must be the first message.")
    if messages[-1].role != "user":
        raise UsageError("The last message must be the user's.")
    if not messages[-1].content.strip():
        raise UsageError("The prompt is empty.")


def messages_of(value: object) -> tuple[Message, ...]:
    """A conversation that ends with the user's turn, from a list of `{role, content}`.

    A content may be a list with one part of text, as some clients write it. A key whose value is
    null is as good as not there; any other key would change what is asked, and is refused.

    Raises:
        NotReadable: it is none, or holds what is not text.
    """
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise NotReadable('"messages" must be a list of objects')
    found = []
    for each in value:
        role, content = each.get("role"), each.get("content")
        if role not in ROLES:
            raise NotReadable('the "role" of a message must be system, user or assistant')
        if isinstance(content, list) and len(content) == 1:
            (part,) = content
            if isinstance(part, dict) and part.keys() == {"type", "text"}:
                content = part["text"] if part["type"] == "text" else None
        if not isinstance(content, str):
            raise NotReadable('the "content" of a message must be a text')
        if any(each[key] is not None for key in each.keys() - {"role", "content"}):
            raise NotReadable('a message holds more than "role" and "content"')
        found.append(Message(role, content))
    try:
        check_turns(found)
    except UsageError as error:
        raise NotReadable(str(error).removesuffix(".")) from None
    return tuple(found)
