"""Tasks: items of one kind, from JSON Lines or from the files of a known data set.

A line is `{id, task, kind, instruction, input, reference, choices, ...}`; a text to predict is
`{id, task, kind: "perplexity", text}`. See docs/tasks.md.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec

from capt_local.bundles.manifest import NAME
from capt_local.errors import UsageError
from capt_local.strict_json import (
    NotReadable,
    Problems,
    convert,
    form,
    lines,
    parse_object,
    read_bytes,
)

_LONGEST_ID = 256
_BETWEEN_LABELS = ", "


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
MAX_TOKENS = {Kind.CLASSIFICATION: 32, Kind.GENERATION: 512, Kind.PERPLEXITY: 1}


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its answer.

    Attributes:
        id: unique in its task.
        instruction: what to do with the input; may be empty where the input says it.
        input: what it is about; for perplexity, the text itself.
        reference: the right answer: for a classification one of `choices`, for labels those that
            apply, joined with ", "; empty for perplexity.
        choices: possible answers, or labels.
        alternatives: further answers that are as right as `reference`.
    """

    id: str
    instruction: str
    input: str
    reference: str
    choices: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """All right answers."""
        return (self.reference, *self.alternatives)


def folded(text: str) -> str:
    """A text without what no reader tells apart: capitals, and how wide a space is."""
    return " ".join(text.casefold().split())


def labels_of(reference: str, no_answer: str) -> tuple[str, ...]:
    """The labels of a reference, which joins them with ", "; `no_answer` is that without any."""
    return () if reference == no_answer else tuple(reference.split(_BETWEEN_LABELS))


def joined_labels(labels: tuple[str, ...], no_answer: str) -> str:
    """The reference with some labels."""
    return _BETWEEN_LABELS.join(labels) or no_answer


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
    if any(_BETWEEN_LABELS in choice for choice in choices):
        return 'one of "choices" has a comma in it'
    named = labels_of(item.reference, no_answer)
    if not set(named) <= set(choices) or len(set(named)) < len(named):
        return '"reference" names a label that is not one of "choices", or one twice'
    return None


@dataclass(frozen=True, slots=True)
class EvalTask:
    """Items of one kind.

    Attributes:
        name: short, for tables.
        kind: of all items.
        items: at least one, in the order of the file.
        measure: what answers are measured by.
        licence: of the items.
        max_tokens: the longest answer.
        no_answer: for spans the answer that says that there is none; for labels the answer that
            says that none applies.
        aliases: further words that name a choice, by the choice in the values.
        questions: for labels: a yes/no question for each, put one by one instead of asking for a
            list; empty: for the list.
        digest: SHA-256 in hexadecimal over all files that the items come from.
        total: how many items there were before `limit`.
        choices: all choices of all items, in the order of their first appearance.
        same_choices: whether every item has the same choices, so that they are classes.

    Raises:
        UsageError: the items are not of the kind, or two share an id.
    """

    name: str
    kind: Kind
    items: tuple[Item, ...]
    measure: Measure
    licence: str = ""
    max_tokens: int = 512
    no_answer: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    questions: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""
    total: int = 0
    choices: tuple[str, ...] = field(init=False)
    same_choices: bool = field(init=False)

    def __post_init__(self) -> None:
        """Checks that everything fits together."""
        each = dict.fromkeys(item.choices for item in self.items)
        found = dict.fromkeys(choice for choices in each for choice in choices)
        object.__setattr__(self, "choices", tuple(found))
        object.__setattr__(self, "same_choices", len(each) == 1)
        if not self.items:
            raise UsageError("A task needs at least one item.")
        if self.measure not in MEASURES[self.kind]:
            raise UsageError(f"A {self.kind} task cannot be measured by {self.measure}.")
        for number, item in enumerate(self.items, 1):
            if problem := problem_of(item, self.measure, self.no_answer):
                raise UsageError(f"Item {number} of a task: {problem}.")
        if len({item.id for item in self.items}) < len(self.items):
            raise UsageError("Two items of a task have the same id.")


def read_task(
    place: Path, *, limit: int | None = None, seed: int = 0, what: str = "The task file"
) -> EvalTask:
    """Reads a task.

    Args:
        place: a file of JSON Lines, or DATASET=PATH (see `evaluate.datasets`).
        limit: only so many items, drawn at random, in the order of the file.
        seed: of the draw.
        what: how errors call it; its name may be a patient's.

    Raises:
        UsageError: it cannot be read, or lines are not as they should be; the first is reported
            with its number, and how many more there are.
    """
    from capt_local.evaluate.datasets import DATASETS

    name, equals, path = str(place).partition("=")
    task = DATASETS[name](Path(path), what) if equals and name in DATASETS else _lines(place, what)
    if limit is None or limit >= len(task.items):
        return task
    chosen = sorted(random.Random(seed).sample(range(len(task.items)), limit))
    return replace(task, items=tuple(task.items[index] for index in chosen))


class TaskLine(msgspec.Struct, frozen=True):
    """A line of a file of items; keys of others are left alone."""

    id: str | int
    task: Annotated[str, form(NAME.pattern, "must be 1 to 64 letters, digits, '.-_'")]
    kind: Kind
    instruction: str = ""
    input: str = ""
    text: str = ""
    reference: str = ""
    choices: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    licence: str = ""
    measure: Measure | None = None
    no_answer: str = ""

    def item(self) -> Item:
        """As an item."""
        if self.kind is Kind.PERPLEXITY:
            return Item(str(self.id), "", self.text, "")
        return Item(
            str(self.id),
            self.instruction,
            self.input,
            self.reference,
            self.choices,
            self.alternatives,
        )

    @property
    def shared(self) -> tuple[object, ...]:
        """What all lines of a file have in common."""
        return self.task, self.kind, self.measure or MEASURES[self.kind][0], self.no_answer


def _lines(place: Path, what: str) -> EvalTask:
    data = read_bytes(place, what)
    problems, found = Problems(what), dict[str, TaskLine]()
    first: TaskLine | None = None
    for number, raw in lines(data):
        try:
            line = convert(parse_object(raw), TaskLine)
            first = first or line
            measure = line.measure or MEASURES[line.kind][0]
            if problem := problem_of(line.item(), measure, line.no_answer):
                raise NotReadable(problem)
            if str(line.id) in found:
                raise NotReadable('this "id" stood on a line before')
            if line.shared != first.shared:
                raise NotReadable(
                    '"task", "kind", "measure" or "no_answer" is not that of the first line'
                )
        except NotReadable as error:
            problems.add(number, error)
        else:
            found[str(line.id)] = line
    problems.raise_first()
    if first is None:
        problems.fail("it holds no items")
    return EvalTask(
        name=first.task,
        kind=first.kind,
        items=tuple(line.item() for line in found.values()),
        measure=first.measure or MEASURES[first.kind][0],
        licence="; ".join(dict.fromkeys(line.licence for line in found.values() if line.licence)),
        max_tokens=MAX_TOKENS[first.kind],
        no_answer=first.no_answer,
        digest=hashlib.sha256(data).hexdigest(),
        total=len(found),
    )


def shortened(task: EvalTask, size: int | None) -> tuple[EvalTask, frozenset[str]]:
    """The task with inputs of at most so many bytes: their beginnings, never a part of a character.

    Args:
        task: any.
        size: bytes of UTF-8; None leaves everything as it is.

    Returns:
        The task, and the ids of the items that were cut.

    Raises:
        UsageError: nothing would be left of an input.
    """
    if size is None:
        return task, frozenset()
    cut = {item.id for item in task.items if len(item.input.encode()) > size}
    items = tuple(
        replace(item, input=item.input.encode()[:size].decode("utf-8", "ignore"))
        for item in task.items
    )
    if any(not item.input.strip() for item in items):
        raise UsageError(f"--max-input-bytes {size} leaves nothing of an input; allow more.")
    return replace(task, items=items), frozenset(cut)
