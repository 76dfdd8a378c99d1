"""A conversation as JSON Lines, and back.

The first line says what this is and which models spoke; each line behind it is something that
happened: a system text, a turn with the full record of its answer (the object of `generate
--json`), a turn taken back, a new beginning. A saved conversation and the running transcript of a
session have the same form, so both can be gone on from.

A file that is read is untrusted. Errors name the line and never what is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from capt_local.chat.conversation import Conversation, Turn
from capt_local.errors import UsageError
from capt_local.report.json import JsonObject, answer_object, dumps
from capt_local.report.readback import answer_from
from capt_local.strict.json import parse_object
from capt_local.strict.problems import NotReadable

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


def read(data: bytes, speakers: Speakers) -> Conversation:
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
