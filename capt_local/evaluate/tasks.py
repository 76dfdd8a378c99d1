"""Tasks: items of one kind, and what their answers are measured by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from capt_local.errors import UsageError

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
