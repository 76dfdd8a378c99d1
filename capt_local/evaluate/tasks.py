"""Tasks: items of one kind, what their answers are measured by, and how they are asked and read.

A free answer is read from the surest sign to the weakest; one that names two choices, or denies
one, names none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from capt_local.errors import UsageError
from capt_local.prompting.messages import Message

_LONGEST_ID = 256
LABEL_SEPARATOR = ", "


class Kind(StrEnum):
    """What a model does."""

    CLASSIFICATION = "classification"  # names one of some choices
    GENERATION = "generation"  # writes a text
    PERPLEXITY = "perplexity"  # predicts a text


class Measure(StrEnum):
    """What an answer is measured by; see `evaluate.metrics`."""

    CHOICE = "choice"  # accuracy and macro-F1
    ROUGE = "rouge"  # overlap with the reference
    SPAN = "span"  # exact match and F1 of tokens, as for SQuAD
    LABELS = "labels"  # micro- and macro-F1 of a set of choices
    FIELDS = "fields"  # each field of a JSON object
    BITS = "bits"  # bits per byte


MEASURES: dict[Kind, tuple[Measure, ...]] = {  # the first is the default
    Kind.CLASSIFICATION: (Measure.CHOICE,),
    Kind.GENERATION: (Measure.ROUGE, Measure.SPAN, Measure.LABELS, Measure.FIELDS),
    Kind.PERPLEXITY: (Measure.BITS,),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its answer."""

    id: str
    instruction: str  # may be empty where the input says it
    input: str  # for perplexity, the text itself
    reference: str  # one of `choices`; labels that apply, joined with ", "; empty for perplexity
    choices: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()  # as right as the reference

    @property
    def references(self) -> tuple[str, ...]:
        """All right answers."""
        return (self.reference, *self.alternatives)


def folded(text: str) -> str:
    """A text without what no reader tells apart: capitals, and how wide a space is."""
    return " ".join(text.casefold().split())


def labels_of(reference: str, no_answer: str) -> tuple[str, ...]:
    """The labels of a reference; `no_answer` is that without any."""
    return () if reference == no_answer else tuple(reference.split(LABEL_SEPARATOR))


def json_object(text: str) -> dict[str, Any] | None:
    """A text as a JSON object; None where it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def problem_of(item: Item, measure: Measure, no_answer: str = "") -> str | None:
    """Why an item cannot be measured so, without a word of it; None if it can."""
    choices = item.choices
    if not item.id.strip() or len(item.id) > _LONGEST_ID or not item.id.isprintable():
        return f'"id" must be 1 to {_LONGEST_ID} printable characters'
    if not item.input.strip():
        return '"text" is empty' if measure is Measure.BITS else '"input" is empty'
    if measure is Measure.BITS:
        return None
    if any(not reference.strip() for reference in item.references):
        return '"reference" is empty'
    if measure is Measure.FIELDS and json_object(item.reference) is None:
        return '"reference" is no JSON object'
    if measure not in (Measure.CHOICE, Measure.LABELS):
        return '"choices" are only for a classification' if choices else None
    if len(choices) < (2 if measure is Measure.CHOICE else 1):
        return '"choices" must be at least two' if choices else 'no "choices"'
    if any(not choice.strip() or choice != choice.strip() for choice in choices):
        return 'one of "choices" is empty, or begins or ends with a space'
    if len({folded(choice) for choice in choices}) < len(choices):
        return 'two of "choices" are the same, but for capitals and spaces'
    if measure is Measure.CHOICE:
        return None if item.reference in choices else '"reference" is not one of "choices"'
    if any(LABEL_SEPARATOR in choice for choice in choices):
        return 'one of "choices" has a comma in it'
    named = labels_of(item.reference, no_answer)
    if not set(named) <= set(choices) or len(set(named)) < len(named):
        return '"reference" names a label that is not one of "choices", or one twice'
    return None


@dataclass(frozen=True, slots=True)
class EvalTask:
    """Items of one kind; `evaluate.datasets` reads and checks them."""

    name: str
    kind: Kind
    items: tuple[Item, ...]  # at least one, in the order of the file
    measure: Measure
    licence: str = ""
    max_tokens: int = 512
    no_answer: str = ""  # the answer that says that there is none, or that no label applies
    aliases: Mapping[str, str] = field(default_factory=dict)  # further words for a choice
    questions: Mapping[str, str] = field(default_factory=dict)  # for each label one with yes or no
    digest: str = ""  # SHA-256 over all files
    total: int = 0  # items before `limit`
    cut: frozenset[str] = frozenset()  # ids of the items whose input was cut on request
    choices: tuple[str, ...] = field(init=False)  # of all items
    same_choices: bool = field(init=False)  # whether they are classes

    def __post_init__(self) -> None:
        each = dict.fromkeys(item.choices for item in self.items)
        found = dict.fromkeys(choice for choices in each for choice in choices)
        object.__setattr__(self, "choices", tuple(found))
        object.__setattr__(self, "same_choices", len(each) == 1)


def shortened(task: EvalTask, size: int | None) -> EvalTask:
    """The task with inputs of at most `size` bytes: their beginnings, in whole characters.

    Raises:
        UsageError: nothing would be left of an input.
    """
    if size is None:
        return task
    items = tuple(
        replace(item, input=item.input.encode()[:size].decode("utf-8", "ignore"))
        for item in task.items
    )
    if any(not item.input.strip() for item in items):
        raise UsageError(f"--max-input-bytes {size} leaves nothing of an input; allow more.")
    cut = {old.id for old, new in zip(task.items, items, strict=True) if old.input != new.input}
    return replace(task, items=items, cut=frozenset(cut))


# --- how an item is asked, and its answer read ---------------------------------------------------

YES_NO = ("Yes", "No")
_BETWEEN = "\n\n"
_LEAD = "\n\nAnswer:"  # between question and answer of raw text
_AROUND = "\"'`*_“”‘’«» \t.,:;!?()[]"
_LEAD_IN = re.compile(
    r"^(?:the\s+)?(?:(?:best|correct|final)\s+)?(?:answer|option|choice)\b\W*(?:is\b)?"
)
_OR = r"\s*(?:,|/|or\b|and\b)\s*(?:or\b|and\b)?\s*"
_DENIAL = re.compile(r"(?:\b(?:not|never|no|neither|nor|cannot|without)|n['’]t)\s+(?:\w+\s+)?$")


def messages(item: Item, task: EvalTask) -> list[Message]:
    """The conversation that asks for an answer."""
    return [Message("user", _question(item, task))]


def text(item: Item, task: EvalTask) -> str:
    """The same as a text for a model without a chat template; the answer goes on behind it."""
    return _question(item, task) + _LEAD


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
