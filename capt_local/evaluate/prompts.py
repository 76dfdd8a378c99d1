"""How an item is put to a model, which examples are shown, and how its answer is read.

Examples are earlier turns of the conversation. A free answer is read from the surest sign to the
weakest; one that names two choices, or denies one, names none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from capt_local.errors import UsageError
from capt_local.evaluate.tasks import EvalTask, Item, Kind, folded
from capt_local.prompting.messages import Message

YES_NO = ("Yes", "No")
_BETWEEN = "\n\n"
_LEAD = "\n\nAnswer:"  # between question and answer of raw text
_AROUND = "\"'`*_“”‘’«» \t.,:;!?()[]"
_LEAD_IN = re.compile(
    r"^(?:the\s+)?(?:(?:best|correct|final)\s+)?(?:answer|option|choice)\b\W*(?:is\b)?"
)
_OR = r"\s*(?:,|/|or\b|and\b)\s*(?:or\b|and\b)?\s*"
_DENIAL = re.compile(r"(?:\b(?:not|never|no|neither|nor|cannot|without)|n['’]t)\s+(?:\w+\s+)?$")


@dataclass(frozen=True, slots=True)
class Examples:
    """The first `count` items of a task, to show before a question.

    Raises:
        UsageError: there are fewer, or they are prose.
    """

    task: EvalTask
    count: int

    def __post_init__(self) -> None:
        if self.task.kind is Kind.PERPLEXITY:
            raise UsageError("The file of examples holds texts without answers.")
        if not 1 <= self.count <= len(self.task.items):
            raise UsageError(
                f"{self.count} examples are wanted, but the file of examples has "
                f"{len(self.task.items)}; --shots is at least 1 and no more."
            )

    def of(self, item: Item, task: EvalTask) -> list[Item]:
        """The examples for an item: never the item itself, nor one with the same input."""
        if self.task.kind is not task.kind:
            raise UsageError(f"The examples are for {self.task.kind}, the task is {task.kind}.")
        same_file = self.task.digest == task.digest
        left = [
            one
            for one in self.task.items
            if folded(one.input) != folded(item.input) and not (same_file and one.id == item.id)
        ]
        if len(left) < self.count:
            raise UsageError(
                f"{self.count} examples are wanted, but only {len(left)} are not the question "
                "itself; use fewer."
            )
        return left[: self.count]


def messages(item: Item, task: EvalTask, examples: Examples | None = None) -> list[Message]:
    """The conversation that asks for an answer."""
    turns = []
    for shot in examples.of(item, task) if examples else []:
        turns += [Message("user", _question(shot, task)), Message("assistant", shot.reference)]
    return [*turns, Message("user", _question(item, task))]


def text(item: Item, task: EvalTask, examples: Examples | None = None) -> str:
    """The same as one text for a model without a chat template; the answer goes on behind it."""
    shots = examples.of(item, task) if examples else []
    parts = [f"{_question(shot, task)}{_LEAD} {shot.reference}" for shot in shots]
    return _BETWEEN.join([*parts, _question(item, task) + _LEAD])


def label_question(item: Item, task: EvalTask, label: str, *, raw: bool) -> str | list[Message]:
    """Whether one label applies, as a question that is answered with `YES_NO`."""
    options = "\n".join(f"-{answer}" for answer in YES_NO)
    asked = replace(item, input=f"{item.input}\n\n{task.questions[label]} Options:\n{options}")
    return text(asked, task) if raw else messages(asked, task)


def _question(item: Item, task: EvalTask) -> str:
    parts = [item.instruction.strip(), item.input]
    if task.kind is Kind.CLASSIFICATION:
        parts.append(f"Reply with one of these and nothing else: {', '.join(item.choices)}")
    return _BETWEEN.join(part for part in parts if part)


def read_answer(answer: str, item: Item, task: EvalTask) -> str | None:
    """The choice that an answer names, of a generation its text; None where it says nothing."""
    if task.kind is not Kind.CLASSIFICATION:
        return answer.strip() or None
    named = named_choice(answer, (*item.choices, *task.aliases))
    return task.aliases.get(named, named) if named is not None else None


def named_choice(answer: str, choices: Sequence[str]) -> str | None:
    """The choice of several distinct ones that an answer names.

    The first rule that holds: the answer is the choice; it begins with the choice as a word of its
    own; its first line with any choice in it has one alone, not denied. Else None.
    """
    by_fold = {folded(choice): choice for choice in choices}
    bare = folded(answer.strip().strip(_AROUND))
    if bare in by_fold:
        return by_fold[bare]
    if all(len(choice) == 1 for choice in choices):  # a bare "A" before a word is an article
        letter = re.match(rf"\(?([{re.escape(''.join(choices))}])[.):,\n]", answer.strip())
        return letter[1] if letter else None
    # Where one choice is a part of another, the longer one.
    longest = sorted(by_fold, key=len, reverse=True)
    one = rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)"
    begun = _LEAD_IN.sub("", folded(answer).lstrip(_AROUND)).lstrip(_AROUND)
    match = re.match(one, begun)
    if match and not re.match(rf"{_OR}{one}\s*(?:$|[,/.;?]|or\b)", begun[match.end() :]):
        return by_fold[match.group()]
    for line in map(folded, answer.splitlines()):
        if found := list(re.finditer(one, line)):
            named = {match.group() for match in found}
            denied = any(_DENIAL.search(line[: match.start()]) for match in found)
            return None if denied or len(named) > 1 else by_fold[named.pop()]
    return None
