"""What was said so far, as values: each change makes a new conversation.

So a turn that fails changes nothing, and a turn that is removed is the conversation before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from capt_local.decoding.options import GenerateOptions
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message
from capt_local.report.json import REPORTED, Answer, answer_object, dumps

if TYPE_CHECKING:
    from capt_local.bundles.manifest import Bundle


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer.

    Attributes:
        question: as the models got it, notes included.
        answer: the record of the answer.
        options: how it was made.
    """

    question: str
    answer: Answer
    options: GenerateOptions

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
        """Without the last turn."""
        self.last()
        return replace(self, turns=self.turns[:-1])

    def last(self) -> Turn:
        """The last turn. Raises UsageError where there is none."""
        if not self.turns:
            raise UsageError("Nothing has been asked yet.")
        return self.turns[-1]


def with_notes(notes: Iterable[str], typed: str) -> str:
    """A question with the notes that it is about in front, an empty line between them."""
    return "\n\n".join([*notes, *([typed] if typed.strip() else [])])


def transcript(conversation: Conversation, bundle: Bundle, provenance: Mapping[str, Any]) -> str:
    """A conversation as JSON Lines: one about the models, the system text, one for each turn."""
    events: list[dict[str, Any]] = [
        {
            "type": "capt-local chat",
            "schema": 1,
            "bundle": bundle.id,
            "models": dict(bundle.digests),
            "provenance": dict(provenance),
            "ai_label": "AIRPT",
            "human_review": "none",
        }
    ]
    if conversation.system is not None:
        events.append({"type": "system", "text": conversation.system})
    for turn in conversation.turns:
        answer = answer_object(turn.answer, top_logprobs=REPORTED)
        events.append({"type": "turn", "question": turn.question, "answer": answer})
    return "".join(dumps(event) + "\n" for event in events)
