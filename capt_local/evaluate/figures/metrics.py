"""What an answer is worth, and what answers are worth together.

An answer becomes an `Outcome` of plain numbers: enough to make every figure and interval again, and
no word of what anybody wrote, so that it may be kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from capt_local.errors import UsageError
from capt_local.evaluate.extra import library
from capt_local.evaluate.figures.overlap import ROUGE, exact_match, rouge, token_f1
from capt_local.evaluate.tasks.items import Item, Measure, folded, labels_of
from capt_local.evaluate.tasks.task import Task

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is left of one answer.

    Attributes:
        values: figures of this item by name, each between 0 and 1; for prose `nats` and `bytes`.
        predicted: the choices that the answer names, as places in the task's choices; empty if
            it names none.
        expected: the choices that are right, likewise.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    predicted: tuple[int, ...] = ()
    expected: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what is no figure."""
        if not all(math.isfinite(value) for value in self.values.values()):
            raise UsageError("A figure of an item is not a number.")


def metrics_of(task: Task) -> tuple[str, ...]:
    """The names of what a task is measured by, the main one first."""
    if task.measure is Measure.CHOICE:
        # With choices of its own for each item there are no classes to take the mean over.
        return ("accuracy", "macro_f1") if task.same_choices else ("accuracy",)
    if task.measure is Measure.LABELS:
        return ("micro_f1", "macro_f1")
    if task.measure is Measure.SPAN:
        return ("exact_match", "token_f1")
    return ROUGE if task.measure is Measure.ROUGE else ("bits_per_byte",)


def judge(task: Task, item: Item, answer: str | None) -> Outcome:
    """Compares an answer with what is right.

    Args:
        task: that the item is of; not of prose.
        item: that was asked.
        answer: what the style read from what the model wrote: for a classification one of the
            choices; None where it read nothing, which is wrong.

    Raises:
        UsageError: the answer is not a choice, or a library is not installed.
    """
    text = answer or ""
    if task.measure is Measure.CHOICE:
        return _choice(task, item, answer)
    if task.measure is Measure.LABELS:
        named = tuple(task.choices.index(label) for label in named_labels(text, item.choices))
        right = labels_of(item.reference, task.no_answer)
        expected = tuple(sorted(task.choices.index(label) for label in right))
        said = bool(named) or folded(text.strip(" .")) == folded(task.no_answer)
        return Outcome({"exact": float(said and named == expected)}, named, expected)
    if task.measure is Measure.SPAN:
        f1 = token_f1(text, item.references, task.no_answer)
        return Outcome({"exact_match": exact_match(text, item.references), "token_f1": f1})
    if task.measure is Measure.ROUGE:
        return Outcome(rouge(text, item.references))
    raise UsageError("Prose is measured by its likelihood, not by an answer.")


def judge_prose(nats: float, size: int) -> Outcome:
    """The outcome of a text.

    Args:
        nats: -log p of the whole text.
        size: bytes of UTF-8.
    """
    return Outcome({"nats": nats, "bytes": float(size)})


def named_labels(answer: str, choices: Sequence[str]) -> tuple[str, ...]:
    """The labels in a list of labels, in the order of `choices`; a part that is none is left out.

    Parts are separated by commas, semicolons or line feeds; capitals do not matter.
    """
    parts = answer.replace(";", ",").replace("\n", ",").split(",")
    said = {folded(part.strip(" .*-\t\r")) for part in parts}
    return tuple(choice for choice in choices if folded(choice) in said)


def summarise(task: Task, outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The figures of a task, by the names of `metrics_of`.

    Args:
        task: that the outcomes are of.
        outcomes: at least one; of any of its items.

    Raises:
        UsageError: there are none, or scikit-learn is not installed.
    """
    if not outcomes:
        raise UsageError("There is nothing to summarise.")
    return {name: _figure(task, name, outcomes) for name in metrics_of(task)}


def column(outcomes: Sequence[Outcome], name: str) -> Floats:
    """One figure of every outcome, float64 of shape (outcomes,)."""
    return np.array([outcome.values[name] for outcome in outcomes], dtype=np.float64)


def bits_per_byte(nats: Floats, sizes: Floats) -> float:
    """-log2 p per byte over all texts: the sum of all bits over the sum of all bytes."""
    return float(nats.sum() / math.log(2) / sizes.sum())


def indicator(places: Sequence[tuple[int, ...]], classes: int) -> NDArray[np.int64]:
    """Sets of classes as zeros and ones, shape (items, classes)."""
    found = np.zeros((len(places), classes), dtype=np.int64)
    for row, named in enumerate(places):
        found[row, list(named)] = 1
    return found


def f1(task: Task, outcomes: Sequence[Outcome], average: str) -> float:
    """F1 over the task's choices (scikit-learn); a choice that never comes up has 0.

    Args:
        task: that the outcomes are of.
        outcomes: at least one.
        average: "macro": the mean over choices; "micro": over all decisions.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    metrics = library("sklearn.metrics")
    classes = len(task.choices)
    right = indicator([outcome.expected for outcome in outcomes], classes)
    named = indicator([outcome.predicted for outcome in outcomes], classes)
    # An answer that names nothing is a row of zeros: a miss of its class, a find of none.
    return float(
        metrics.f1_score(right, named, average=average, zero_division=0)
        if classes > 1
        else metrics.f1_score(right[:, 0], named[:, 0], zero_division=0)
    )


def _choice(task: Task, item: Item, answer: str | None) -> Outcome:
    if answer is not None and answer not in item.choices:
        raise UsageError("An answer to a classification is not one of its choices.")
    right = answer == item.reference
    predicted = () if answer is None else (task.choices.index(answer),)
    return Outcome({"accuracy": float(right)}, predicted, (task.choices.index(item.reference),))


def _figure(task: Task, name: str, outcomes: Sequence[Outcome]) -> float:
    if name in ("macro_f1", "micro_f1"):
        return f1(task, outcomes, name.removesuffix("_f1"))
    if name == "bits_per_byte":
        return bits_per_byte(column(outcomes, "nats"), column(outcomes, "bytes"))
    return float(column(outcomes, name).mean())
