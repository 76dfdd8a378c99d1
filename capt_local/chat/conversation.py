"""What was said so far, as values: each change makes a new conversation.

So a turn that fails changes nothing, and a turn that is taken back is the conversation before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from capt_local.decode.options import GenerateOptions
from capt_local.errors import UsageError
from capt_local.prompt.messages import Message
from capt_local.report.json import Answer


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
