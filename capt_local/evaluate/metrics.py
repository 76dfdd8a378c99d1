"""What one answer is worth.

An answer becomes an `Outcome` of plain numbers: enough to compute every figure and interval again,
and no word of what anybody wrote, so that it may be stored.
"""

from __future__ import annotations

import importlib
import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

import msgspec

from capt_local.errors import UsageError
from capt_local.evaluate.tasks import EvalTask, Item, Measure, folded, json_object, labels_of

ROUGE = ("rouge1", "rouge2", "rougeL")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_Place = Annotated[int, msgspec.Meta(ge=0)]


class Outcome(msgspec.Struct, frozen=True):
    """What is left of one answer: figures from 0 to 1 by name (of prose `nats` and `bytes`).

    Choices that the answer names, and those that are right, are places in the task's choices.
    """

    values: dict[str, float] = {}
    predicted: tuple[_Place, ...] = ()
    expected: tuple[_Place, ...] = ()


def library(name: str) -> Any:
    """A module of the extra `eval`; UsageError where that is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(
            f"This needs {name.split('.')[0]}: pip install 'capt-local[eval]'."
        ) from None


def metrics_of(task: EvalTask) -> tuple[str, ...]:
    """The names of what a task is measured by, the main one first."""
    match task.measure:
        case Measure.CHOICE:
            # With choices of its own for each item there are no classes to take the mean over.
            return ("accuracy", "macro_f1") if task.same_choices else ("accuracy",)
        case Measure.LABELS:
            return ("micro_f1", "macro_f1")
        case Measure.SPAN:
            return ("exact_match", "token_f1")
        case Measure.FIELDS:
            wanted = (json_object(item.reference) or {} for item in task.items)
            return ("fields", *dict.fromkeys(name for fields in wanted for name in fields))
        case Measure.ROUGE:
            return ROUGE
        case Measure.BITS:
            return ("bits_per_byte",)


def judge(task: EvalTask, item: Item, answer: str | None) -> Outcome:
    """Compares with what is right what was read from an answer (see `tasks.read_answer`).

    None, where nothing was read, is wrong. Prose is measured by its likelihood instead.
    """
    text = answer or ""
    match task.measure:
        case Measure.CHOICE:
            chosen = () if answer is None else (task.choices.index(answer),)
            right = (task.choices.index(item.reference),)
            return Outcome({"accuracy": float(answer == item.reference)}, chosen, right)
        case Measure.LABELS:
            predicted = tuple(map(task.choices.index, named_labels(text, item.choices)))
            wanted_labels = labels_of(item.reference, task.no_answer)
            expected = tuple(sorted(map(task.choices.index, wanted_labels)))
            answered = bool(predicted) or folded(text.strip(" .")) == folded(task.no_answer)
            exact = float(answered and predicted == expected)
            return Outcome({"exact": exact}, predicted, expected)
        case Measure.SPAN:
            f1 = token_f1(text, item.references, task.no_answer)
            return Outcome({"exact_match": exact_match(text, item.references), "token_f1": f1})
        case Measure.ROUGE:
            return Outcome(rouge(text, item.references))
        case Measure.FIELDS:
            found, wanted = json_object(text) or {}, json_object(item.reference) or {}
            each = {name: field_score(value, found.get(name)) for name, value in wanted.items()}
            mean = sum(each.values()) / len(each) if each else float(not found)
            # A field that the reference lacks is right where the answer lacks it, too.
            others = {name: float(name not in found) for name in metrics_of(task)[1:]}
            return Outcome({**others, **each, "fields": mean})
    raise AssertionError("prose has no answer")


def rouge(answer: str, references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L, F measures with Porter's stemmer; the best over the references each.

    As Google's `rouge-score` computes them (Lin 2004): words of ASCII letters and digits alone;
    an answer or reference without any scores 0.
    """
    found = [_rouge_scorer().score(reference, answer) for reference in references]
    return {name: max(float(one[name].fmeasure) for one in found) for name in ROUGE}


@cache
def _rouge_scorer() -> Any:
    return library("rouge_score.rouge_scorer").RougeScorer(list(ROUGE), use_stemmer=True)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer is a reference, but for capitals, punctuation, articles and spaces; else 0.

    The normalisation is that of the SQuAD evaluation (Rajpurkar et al. 2016).
    """
    return float(_normal(answer) in map(_normal, references))


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
    if isinstance(wanted, bool) or isinstance(found, bool):
        return float(wanted is found)
    if isinstance(wanted, int | float) and isinstance(found, int | float):
        return float(math.isclose(wanted, found, rel_tol=1e-6))
    return float(wanted is None and found is None)


def named_labels(answer: str, choices: Sequence[str]) -> tuple[str, ...]:
    """The labels in a list of labels, in the order of `choices`; a part that is none is left out.

    Parts are separated by commas, semicolons or line feeds; capitals do not matter.
    """
    parts = answer.replace(";", ",").replace("\n", ",").split(",")
    named = {folded(part.strip(" .*-\t\r")) for part in parts}
    return tuple(choice for choice in choices if folded(choice) in named)
