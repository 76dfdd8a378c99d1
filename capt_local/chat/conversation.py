"""What was said so far, as values: each change makes a new conversation.

So a turn that fails changes nothing, and a turn that is removed is the conversation before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from capt_local.decoding.options import GenerateOptions
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message
from capt_local.report.json import (
    REPORTED,
    Answer,
    JsonObject,
    answer_from,
    answer_object,
    dumps,
)
from capt_local.strict_json import NotReadable, parse_object

KIND = "capt-local chat"
SCHEMA = 1
LARGEST = 1 << 28  # bytes; a longer file is not read


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer.

    Attributes:
        question: as the models got it, notes included.
        answer: the record of the answer.
        options: how it was made; None if it was loaded.
    """

    question: str
    answer: Answer
    options: GenerateOptions | None = None

    @property
    def reply(self) -> str:
        """The answer as text, the same as was shown; bytes that are no character are U+FFFD."""
        return self.answer.text.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A system text before all turns (None for nothing), and the turns, oldest first."""

    system: str | None = None
    turns: tuple[Turn, ...] = ()

    def messages(self) -> list[Message]:
        """All that was said."""
        found = [Message("system", self.system)] if self.system is not None else []
        for turn in self.turns:
            found += [Message("user", turn.question), Message("assistant", turn.reply)]
        return found

    def asking(self, question: str) -> list[Message]:
        """All that was said, and a question."""
        return [*self.messages(), Message("user", question)]

    def plus(self, turn: Turn) -> Conversation:
        """With one more turn."""
        return replace(self, turns=(*self.turns, turn))

    def without_last(self) -> Conversation:
        """Without the last turn.

        Raises:
            UsageError: there is none.
        """
        self.last()
        return replace(self, turns=self.turns[:-1])

    def last(self) -> Turn:
        """The last turn.

        Raises:
            UsageError: there is none.
        """
        if not self.turns:
            raise UsageError("Nothing has been asked yet.")
        return self.turns[-1]


def with_notes(notes: Iterable[str], typed: str) -> str:
    """A question with the notes that it is about in front, an empty line between them."""
    return "\n\n".join([*notes, *([typed] if typed.strip() else [])])


# Transcripts: a first line about the models, then a line for each event.

UNDO = dumps({"type": "undo"})
"""The last turn was removed."""
CLEAR = dumps({"type": "clear"})
"""All turns were forgotten."""


@dataclass(frozen=True, slots=True)
class Speakers:
    """Whose conversation it is: the id of the bundle, and SHA-256 by role.

    None stands for a file that no manifest names.
    """

    bundle: str
    digests: Mapping[str, str | None]

    def line(self, provenance: Mapping[str, Any]) -> str:
        """The first line of a file."""
        return dumps(
            {
                "type": KIND,
                "schema": SCHEMA,
                "bundle": self.bundle,
                "models": dict(self.digests),
                "provenance": dict(provenance),
                "ai_label": "AIRPT",
                "human_review": "none",
            }
        )


def turn_line(turn: Turn) -> str:
    """A turn, with all that is known about its answer."""
    answer = answer_object(turn.answer, top_logprobs=REPORTED)
    return dumps({"type": "turn", "question": turn.question, "answer": answer})


def system_line(text: str | None) -> str:
    """A system text; None removes it."""
    return dumps({"type": "system", "text": text})


def transcript(conversation: Conversation, first: str) -> str:
    """A whole conversation behind its first line."""
    lines = [first]
    if conversation.system is not None:
        lines.append(system_line(conversation.system))
    lines += [turn_line(turn) for turn in conversation.turns]
    return "".join(f"{line}\n" for line in lines)


def read_transcript(data: bytes, speakers: Speakers) -> Conversation:
    """The conversation that a file holds.

    Args:
        data: the file.
        speakers: who is to go on with it.

    Raises:
        UsageError: it is broken, no such file, of a later version, or of other models.
    """
    lines = [line.removesuffix(b"\r") for line in data.removesuffix(b"\n").split(b"\n")]
    conversation = Conversation()
    for number, line in enumerate(lines, 1):
        try:
            event = parse_object(line)
        except NotReadable:
            raise _broken(number) from None
        if number == 1:
            _check_first(event, speakers)
        else:
            conversation = _happened(conversation, event, number)
    return conversation


def _happened(conversation: Conversation, event: JsonObject, number: int) -> Conversation:
    match event:
        case {"type": "system", "text": str() | None as text}:
            return replace(conversation, system=text)
        case {"type": "turn", "question": str() as question} if question.strip():
            try:
                return conversation.plus(Turn(question, answer_from(event.get("answer"))))
            except UsageError as error:  # names the field, not what is in it
                raise UsageError(f"Line {number} of the transcript: {error}") from None
        case {"type": "undo"} if conversation.turns:
            return conversation.without_last()
        case {"type": "clear"}:
            return replace(conversation, turns=())
    raise _broken(number)


def _check_first(event: JsonObject, speakers: Speakers) -> None:
    if event.get("type") != KIND:
        raise UsageError("This file is no saved conversation of capt-local.")
    if event.get("schema") != SCHEMA:
        raise UsageError("This conversation was saved by another version of capt-local.")
    if event.get("bundle") != speakers.bundle or event.get("models") != dict(speakers.digests):
        raise UsageError(
            "This conversation was had with other models. Start chat with the bundle that it was "
            "saved with."
        )


def _broken(number: int) -> UsageError:
    return UsageError(f"Line {number} of the transcript is broken; nothing was loaded.")
