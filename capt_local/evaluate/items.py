"""Items of tasks, and their form as JSON Lines.

A line is `{id, task, kind, instruction, input, reference, ...}`; a text to predict is `{id, task,
kind: "perplexity", text}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from capt_local.strict_json import NotReadable, Problems, lines, parse_object

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
    BITS = "bits"  # bits per byte


MEASURES: dict[Kind, tuple[Measure, ...]] = {
    Kind.CLASSIFICATION: (Measure.CHOICE,),
    Kind.GENERATION: (Measure.ROUGE, Measure.SPAN, Measure.LABELS),
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
    """The labels that a reference names.

    Args:
        reference: labels joined with ", ".
        no_answer: the reference that names none.
    """
    return () if reference == no_answer else tuple(reference.split(_BETWEEN_LABELS))


def joined_labels(labels: tuple[str, ...], no_answer: str) -> str:
    """The reference that names some labels."""
    return _BETWEEN_LABELS.join(labels) or no_answer


def problem_of(item: Item, measure: Measure, no_answer: str = "") -> str | None:
    """Why an item cannot be measured so, without a word of it; None if it can."""
    if not item.id.strip() or len(item.id) > _LONGEST_ID or not item.id.isprintable():
        return f'"id" must be 1 to {_LONGEST_ID} printable characters'
    if not item.input.strip():
        return '"text" is empty' if measure is Measure.BITS else '"input" is empty'
    if measure is Measure.BITS:
        return None
    if any(not reference.strip() for reference in item.references):
        return '"reference" is empty'
    problem = _problem_of_choices(item, measure)
    if problem:
        return problem
    if measure is Measure.CHOICE and item.reference not in item.choices:
        return '"reference" is not one of "choices"'
    if measure is Measure.LABELS:
        named = labels_of(item.reference, no_answer)
        if not set(named) <= set(item.choices) or len(set(named)) < len(named):
            return '"reference" names a label that is not one of "choices", or one twice'
    return None


def _problem_of_choices(item: Item, measure: Measure) -> str | None:
    needed = measure in (Measure.CHOICE, Measure.LABELS)
    if not needed:
        return '"choices" are only for a classification' if item.choices else None
    if not item.choices:
        return 'no "choices"'
    if measure is Measure.CHOICE and len(item.choices) < 2:
        return '"choices" must be at least two'
    if any(not choice.strip() or choice != choice.strip() for choice in item.choices):
        return 'one of "choices" is empty, or begins or ends with a space'
    if len({folded(choice) for choice in item.choices}) < len(item.choices):
        return 'two of "choices" are the same, but for capitals and spaces'
    if measure is Measure.LABELS and any(_BETWEEN_LABELS in choice for choice in item.choices):
        return 'one of "choices" has a comma in it'
    return None


@dataclass(frozen=True, slots=True)
class Record:
    """One line.

    Attributes:
        task: the name of its task.
        kind: of the item.
        licence: of the item; "" where none is given.
        item: what stands there.
    """

    task: str
    kind: Kind
    licence: str
    item: Item


def read_records(data: bytes, problems: Problems) -> list[Record]:
    """The records of a file.

    Args:
        data: the file.
        problems: raises what is wrong, after all lines have been read.

    Raises:
        UsageError: a line is not a record, an id stands there twice, or lines are not of one task.
    """
    found: list[Record] = []
    seen: set[str] = set()
    for number, line in lines(data):
        try:
            record = _record(parse_object(line))
            if record.item.id in seen:
                raise NotReadable('this "id" stood on a line before')
            if found and record.kind is not found[0].kind:
                raise NotReadable('"kind" is not that of the lines before')
            if found and record.task != found[0].task:
                raise NotReadable('"task" is not that of the lines before')
        except NotReadable as error:
            problems.add(number, error)
        else:
            seen.add(record.item.id)
            found.append(record)
    problems.raise_first()
    return found


def _record(value: Mapping[str, object]) -> Record:
    kind = _kind(value)
    prose = kind is Kind.PERPLEXITY
    item = Item(
        id=identifier(value.get("id")),
        instruction="" if prose else _text(value, "instruction"),
        input=_text(value, "text" if prose else "input"),
        reference="" if prose else _text(value, "reference"),
        choices=() if prose else texts(value.get("choices", []), "choices"),
    )
    problem = problem_of(item, measure_of(kind))
    if problem:
        raise NotReadable(problem)
    licence = _text(value, "licence") if "licence" in value else ""
    return Record(_text(value, "task"), kind, licence, item)


def measure_of(kind: Kind) -> Measure:
    """What a kind is measured by where nothing else is asked for."""
    return MEASURES[kind][0]


def identifier(value: object) -> str:
    """An id: a text or a whole number.

    Raises:
        NotReadable: it is neither.
    """
    if value is None:
        raise NotReadable('no "id"')
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise NotReadable('"id" must be a text or a whole number')
    return str(value)


def texts(value: object, key: str) -> tuple[str, ...]:
    """A list of texts.

    Raises:
        NotReadable: it is something else.
    """
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise NotReadable(f'"{key}" must be a list of texts')
    return tuple(value)


def _kind(value: Mapping[str, object]) -> Kind:
    try:
        return Kind(_text(value, "kind"))
    except ValueError:
        raise NotReadable(f'"kind" must be one of {", ".join(Kind)}') from None


def _text(value: Mapping[str, object], key: str) -> str:
    if key not in value:
        raise NotReadable(f'no "{key}"')
    found = value[key]
    if not isinstance(found, str):
        raise NotReadable(f'"{key}" must be a text')
    return found
