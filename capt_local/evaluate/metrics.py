"""Metrics: of one answer, and of all answers of a task.

An answer becomes an `Outcome` of plain numbers: enough to compute every figure and interval again,
and no word of what anybody wrote, so that it may be stored.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from capt_local.errors import UsageError
from capt_local.evaluate.tasks import EvalTask, Item, Measure, folded, labels_of


def library(name: str) -> Any:
    """A module of the extra `eval`.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(
            f"This needs {name.split('.')[0]}: pip install 'capt-local[eval]'."
        ) from None


ROUGE = ("rouge1", "rouge2", "rougeL")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge(answer: str, references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L, F measures with Porter's stemmer; the best over the references each.

    As Google's `rouge-score` computes them (Lin 2004): words of ASCII letters and digits alone;
    an answer or reference without any scores 0.

    Raises:
        UsageError: rouge-score is not installed.
    """
    scorer = _scorer()
    found = [scorer.score(reference, answer) for reference in references]
    return {name: max(float(one[name].fmeasure) for one in found) for name in ROUGE}


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer is a reference, but for capitals, punctuation, articles and spaces; else 0.

    The normalisation is that of the SQuAD evaluation (Rajpurkar et al. 2016).
    """
    return max(float(_normal(answer) == _normal(reference)) for reference in references)


def token_f1(answer: str, references: Sequence[str], no_answer: str = "") -> float:
    """The F measure of the words that answer and reference share; the best over the references.

    As in SQuAD 2 (Rajpurkar et al. 2018), a question without an answer is right or wrong: where
    either side is `no_answer`, only the same gives 1.
    """
    return max(_f1(_normal(answer), _normal(one), _normal(no_answer)) for one in references)


def _f1(answer: str, reference: str, no_answer: str) -> float:
    found, wanted = answer.split(), reference.split()
    if not found or not wanted or no_answer in (answer, reference):
        return float(found == wanted)
    shared = (Counter(found) & Counter(wanted)).total()
    return 2 * shared / (len(found) + len(wanted))


def _normal(text: str) -> str:
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


@cache
def _scorer() -> Any:
    make: Callable[..., Any] = library("rouge_score.rouge_scorer").RougeScorer
    return make(list(ROUGE), use_stemmer=True)


Floats = NDArray[np.float64]


_Place = Annotated[int, msgspec.Meta(ge=0)]


class Outcome(msgspec.Struct, frozen=True):
    """What is left of one answer.

    Attributes:
        values: figures of this item by name, each between 0 and 1; for prose `nats` and `bytes`.
        predicted: the choices that the answer names, as places in the task's choices; empty if
            it names none.
        expected: the choices that are right, likewise.
    """

    values: dict[str, float] = {}
    predicted: tuple[_Place, ...] = ()
    expected: tuple[_Place, ...] = ()


def metrics_of(task: EvalTask) -> tuple[str, ...]:
    """The names of what a task is measured by, the main one first."""
    if task.measure is Measure.CHOICE:
        # With choices of its own for each item there are no classes to take the mean over.
        return ("accuracy", "macro_f1") if task.same_choices else ("accuracy",)
    if task.measure is Measure.LABELS:
        return ("micro_f1", "macro_f1")
    if task.measure is Measure.SPAN:
        return ("exact_match", "token_f1")
    if task.measure is Measure.FIELDS:
        return ("fields", *dict.fromkeys(name for item in task.items for name in json_object(item)))
    return ROUGE if task.measure is Measure.ROUGE else ("bits_per_byte",)


def judge(task: EvalTask, item: Item, answer: str | None) -> Outcome:
    """Compares an answer with what is right.

    Args:
        task: that the item is of; not of prose.
        item: that was answered.
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
        answered = bool(named) or folded(text.strip(" .")) == folded(task.no_answer)
        return Outcome({"exact": float(answered and named == expected)}, named, expected)
    if task.measure is Measure.SPAN:
        f1 = token_f1(text, item.references, task.no_answer)
        return Outcome({"exact_match": exact_match(text, item.references), "token_f1": f1})
    if task.measure is Measure.ROUGE:
        return Outcome(rouge(text, item.references))
    if task.measure is Measure.FIELDS:
        found, wanted = _object(text), json_object(item)
        each = {name: field_score(value, found.get(name)) for name, value in wanted.items()}
        mean = sum(each.values()) / len(each) if each else float(not found)
        # A field that the reference lacks is right where the answer lacks it, too.
        others = {name: float(name not in found) for name in metrics_of(task)[1:]}
        return Outcome({**others, **each, "fields": mean})
    raise UsageError("Prose is measured by its likelihood, not by an answer.")


def json_object(item: Item) -> dict[str, Any]:
    """The reference of an item that is measured by its fields.

    Raises:
        UsageError: it is no JSON object.
    """
    value = _object(item.reference)
    if not value and item.reference.strip() != "{}":
        raise UsageError("A reference of a task that is measured by fields is no JSON object.")
    return value


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def field_score(wanted: Any, found: Any) -> float:
    """How right a field is, 0 to 1.

    Numbers are right within 1e-6 of their size, texts but for capitals and spaces; of lists the F1
    of their elements, where an object counts if each of its fields is right; of objects the mean
    over the fields that are wanted.
    """
    if isinstance(wanted, list) and isinstance(found, list):
        rest, hits = list(found), 0
        for one in wanted:
            at = next((i for i, other in enumerate(rest) if field_score(one, other) == 1.0), None)
            if at is not None:
                del rest[at]
                hits += 1
        return 2 * hits / (len(wanted) + len(found)) if wanted or found else 1.0
    if isinstance(wanted, dict) and isinstance(found, dict):
        each = [field_score(value, found.get(name)) for name, value in wanted.items()]
        return sum(each) / len(each) if each else float(not found)
    if isinstance(wanted, str) and isinstance(found, str):
        return float(folded(wanted) == folded(found))
    numbers = (int, float)
    if isinstance(wanted, bool) or isinstance(found, bool):
        return float(wanted is found)
    if isinstance(wanted, numbers) and isinstance(found, numbers):
        return float(math.isclose(wanted, found, rel_tol=1e-6))
    return float(wanted is None and found is None)


def named_labels(answer: str, choices: Sequence[str]) -> tuple[str, ...]:
    """The labels in a list of labels, in the order of `choices`; a part that is none is left out.

    Parts are separated by commas, semicolons or line feeds; capitals do not matter.
    """
    parts = answer.replace(";", ",").replace("\n", ",").split(",")
    parts_named = {folded(part.strip(" .*-\t\r")) for part in parts}
    return tuple(choice for choice in choices if folded(choice) in parts_named)


def summarise(task: EvalTask, outcomes: Sequence[Outcome]) -> dict[str, float]:
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


def f1(task: EvalTask, outcomes: Sequence[Outcome], average: str) -> float:
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


def _choice(task: EvalTask, item: Item, answer: str | None) -> Outcome:
    if answer is not None and answer not in item.choices:
        raise UsageError("An answer to a classification is not one of its choices.")
    right = answer == item.reference
    predicted = () if answer is None else (task.choices.index(answer),)
    return Outcome({"accuracy": float(right)}, predicted, (task.choices.index(item.reference),))


def _figure(task: EvalTask, name: str, outcomes: Sequence[Outcome]) -> float:
    if name in ("macro_f1", "micro_f1"):
        return f1(task, outcomes, name.removesuffix("_f1"))
    if name == "bits_per_byte":
        return bits_per_byte(column(outcomes, "nats"), column(outcomes, "bytes"))
    return float(column(outcomes, name).mean())
