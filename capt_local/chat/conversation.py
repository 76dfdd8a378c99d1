"""What was said so far, as values: each change makes a new conversation.

So a turn that fails changes nothing, and a turn that is taken back is the conversation before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from capt_local.decoding.options import GenerateOptions
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message
from capt_local.report.json import Answer, JsonObject, answer_from, answer_object, dumps
from capt_local.strict_json import NotReadable, parse_object


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and what was answered.

    Attributes:
        question: as the models got it, notes included.
        answer: the record of what was answered.
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
    """A system text and turns.

    Attributes:
        system: what stands before all turns; None for nothing.
        turns: oldest first.
    """

    system: str | None = None
    turns: tuple[Turn, ...] = ()

    def messages(self) -> list[Message]:
        """All that was said."""
        said = [Message("system", self.system)] if self.system is not None else []
        for turn in self.turns:
            said += [Message("user", turn.question), Message("assistant", turn.reply)]
        return said

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


KIND = "capt-local chat"
SCHEMA = 1
CANDIDATES = 3  # of each model, kept for each token
LARGEST = 1 << 28  # bytes; a longer file is not read


@dataclass(frozen=True, slots=True)
class Speakers:
    """Whose conversation it is.

    Attributes:
        bundle: its id.
        digests: SHA-256 by role; None for a file that no manifest names.
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
    answer = answer_object(turn.answer, top_logprobs=CANDIDATES)
    return dumps({"type": "turn", "question": turn.question, "answer": answer})


def system_line(text: str | None) -> str:
    """A system text; None removes it."""
    return dumps({"type": "system", "text": text})


def undo_line() -> str:
    """The last turn was taken back."""
    return dumps({"type": "undo"})


def clear_line() -> str:
    """All turns were forgotten."""
    return dumps({"type": "clear"})


def written(conversation: Conversation, first: str) -> str:
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
    _check_first(_object(lines[0], 1), speakers)
    conversation = Conversation()
    for number, line in enumerate(lines[1:], 2):
        conversation = _happened(conversation, _object(line, number), number)
    return conversation


def _happened(conversation: Conversation, event: JsonObject, number: int) -> Conversation:
    match event.get("type"):
        case "system":
            text = event.get("text")
            return replace(conversation, system=None if text is None else _text(text, number))
        case "turn":
            return conversation.plus(_turn(event, number))
        case "undo" if conversation.turns:
            return conversation.without_last()
        case "clear":
            return replace(conversation, turns=())
    raise _broken(number)


def _turn(event: JsonObject, number: int) -> Turn:
    question = _text(event.get("question"), number)
    if not question.strip():
        raise _broken(number)
    try:
        return Turn(question, answer_from(event.get("answer")).answer)
    except UsageError as error:  # names the field, not what is in it
        raise UsageError(f"Line {number} of the transcript: {error}") from None


def _check_first(event: JsonObject, speakers: Speakers) -> None:
    if event.get("type") != KIND:
        raise UsageError("This file is no saved conversation of capt-local.")
    if event.get("schema") != SCHEMA:
        raise UsageError("This conversation was saved by another version of capt-local.")
    models = event.get("models")
    if event.get("bundle") != speakers.bundle or models != dict(speakers.digests):
        raise UsageError(
            "This conversation was held with other models. Start chat with the bundle that it "
            "was saved with."
        )


def _object(line: bytes, number: int) -> JsonObject:
    try:
        return parse_object(line)
    except NotReadable:
        raise _broken(number) from None


def _text(value: object, number: int) -> str:
    if isinstance(value, str):
        return value
    raise _broken(number)


def _broken(number: int) -> UsageError:
    return UsageError(f"Line {number} of the transcript is broken; nothing was loaded.")
