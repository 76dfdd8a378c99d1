"""Items: one question with its right answer, and when such a pair makes sense."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

_LONGEST_ID = 256
_BETWEEN_LABELS = ", "


class Kind(StrEnum):
    """What a model does."""

    CLASSIFICATION = "classification"  # names one of some choices
    GENERATION = "generation"  # writes a text
    PERPLEXITY = "perplexity"  # predicts a text


class Measure(StrEnum):
    """What an answer is measured by; see `evaluate.figures.metrics`."""

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
