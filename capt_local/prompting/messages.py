"""Messages, and the prompt that they become for one model.

A prompt is a sequence of segments: scaffolding from a chat template, and text of people or models.
The text is the same bytes for all models; only its tokens differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from capt_local.errors import UsageError
from capt_local.strict_json import ParseError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)
Pair = tuple[bytes, bytes]


def refuse_nul(text: str | bytes, what: str) -> None:
    """Raises UsageError for text with a NUL byte, at which llama.cpp would silently cut it.

    The only rule about control characters in all commands; others are kept. The message names the
    byte offset, and the text by `what`.
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
    # The bytes written by a person or model; None for scaffolding (BOS included). A leading space
    # added by the tokenizer is in the tokens but not here.
    text: bytes | None = None
    evidence: bool = False  # whether it is the user's text, so that it sets the mixture weights


@dataclass(frozen=True, slots=True)
class ReasoningMarkers:
    """The markers of reasoning and answers; control tokens are written as their names."""

    # `begin`: markers at the beginning of the output, each with whether reasoning follows it;
    # `within`: likewise, inside reasoning.
    begin: tuple[tuple[bytes, bool], ...]
    within: tuple[tuple[bytes, bool], ...]
    answers: tuple[Pair, ...] = ()  # markers around the answer itself

    def opened_by(self, scaffold: bytes) -> bool:
        """Whether the scaffolding after the last message ends with a marker of reasoning."""
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
    # Whether the answer continues the text of the last segment (a raw prompt) or begins a text of
    # its own (a chat turn).
    continues_text: bool = False
    # For a turn: whether the answer directly follows a control token, so that some tokenizers add a
    # leading space; and that space, which is not part of the answer.
    starts_text: bool = True
    leading_space: bytes = b""
    notices: tuple[str, ...] = ()  # messages for the user about the prompt
    markers: ReasoningMarkers | None = None  # None: the model writes no reasoning
    turn_ends: frozenset[int] = frozenset()  # tokens that the template writes after an answer

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for segment in self.segments for token in segment.tokens)


def check_turns(messages: Sequence[Message]) -> None:
    """Raises UsageError for a conversation that is empty, out of order, or ends with no text."""
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

    The content may be a list with one text part, as some clients write it. Keys with the value null
    are ignored; any other key would change the meaning of the request, and is refused.

    Raises:
        ParseError: it is not such a list, or holds something other than text.
    """
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ParseError('"messages" must be a list of objects')
    found = []
    for each in value:
        role, content = each.get("role"), each.get("content")
        if role not in ROLES:
            raise ParseError('the "role" of a message must be system, user or assistant')
        if isinstance(content, list) and len(content) == 1:
            (part,) = content
            if isinstance(part, dict) and part.keys() == {"type", "text"}:
                content = part["text"] if part["type"] == "text" else None
        if not isinstance(content, str):
            raise ParseError('the "content" of a message must be a text')
        if any(each[key] is not None for key in each.keys() - {"role", "content"}):
            raise ParseError('a message holds more than "role" and "content"')
        found.append(Message(role, content))
    try:
        check_turns(found)
    except UsageError as error:
        raise ParseError(str(error).removesuffix(".")) from None
    return tuple(found)
