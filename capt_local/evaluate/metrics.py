"""Metrics of answers and methods, and paired bootstrap intervals of their differences.

An answer becomes an `Outcome` of plain numbers: enough to recompute every figure and interval, and
without any text, so that it may be stored.

A figure is a statistic over item indices: over all items it is the estimate; over items resampled
with replacement, the same for both methods, it is one draw of the bootstrap. The interval is
between percentiles of the draws (Efron and Tibshirani 1993; for F1 and other figures that are no
means, Berg-Kirkpatrick et al. 2012). The draws are scipy's.
"""

from __future__ import annotations

import importlib
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from capt_local.errors import UsageError
from capt_local.evaluate.tasks import EvalTask, Item, Measure, folded, json_object, labels_of

ROUGE = ("rouge1", "rouge2", "rougeL")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_Place = Annotated[int, msgspec.Meta(ge=0)]


class Outcome(msgspec.Struct, frozen=True):
    """The figures of one answer by name, from 0 to 1 (for perplexity tasks `nats` and `bytes`).

    `predicted` and `expected` are indices into the task's choices.
    """

    values: dict[str, float] = {}
    predicted: tuple[_Place, ...] = ()
    expected: tuple[_Place, ...] = ()


class Result(msgspec.Struct, frozen=True):
    """One item under one method, as a line of the journal; holds no text."""

    task: str
    method: str
    item: str  # its id
    outcome: Outcome | None = None  # None when it failed
    failed: str = ""  # why
    tokens: int = 0  # of the answer, the scored choices or the text, in the leading model's tokens
    decoded: int = 0  # by all models together, prompts included
    seconds: float = 0.0
    cut: bool = False  # whether the input was cut on request
    unfinished: bool = False  # whether the limit on its length ended the answer

    @property
    def key(self) -> tuple[str, str, str]:
        """Task, method and item: there is one result for each."""
        return self.task, self.method, self.item


def library(name: str) -> Any:
    """A module of the extra `eval`; UsageError where that is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(
            f"This needs {name.split('.')[0]}: pip install 'capt-local[eval]'."
        ) from None


def metrics_of(task: EvalTask) -> tuple[str, ...]:
    """The names of a task's metrics, the main one first."""
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
    """Compares a parsed answer (see `tasks.read_answer`) with the reference.

    None, if nothing could be parsed, is wrong. Perplexity tasks have no answer to compare.
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
    return max(_shared(_normal(answer), _normal(one), _normal(no_answer)) for one in references)


def _shared(answer: str, reference: str, no_answer: str) -> float:
    found, wanted = answer.split(), reference.split()
    if not found or not wanted or no_answer in (answer, reference):
        return float(found == wanted)
    shared = (Counter(found) & Counter(wanted)).total()
    return 2 * shared / (len(found) + len(wanted))


def _normal(text: str) -> str:
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def field_score(wanted: Any, found: Any) -> float:
    """The score of a field, 0 to 1.

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


TARGET = "target"
RESAMPLES = 10_000
CONFIDENCE = 0.95
# Numbers of one batch of draws: 16 MB.
_BATCH_NUMBERS = 2_000_000
_OVER_CHOICES = ("macro_f1", "micro_f1")

Floats: TypeAlias = NDArray[np.float64]
# From drawn items, numbers of shape (draws, items), to a value for each draw, shape (draws,).
Statistic: TypeAlias = Callable[[NDArray[np.intp]], Floats]


class Interval(msgspec.Struct, frozen=True):
    """A figure or a comparison with its confidence interval, as `--json` has it."""

    kind: str  # "value"; "ratio" (method over target) or "difference" (minus target)
    estimate: float
    low: float
    high: float
    items: int  # that there were, or that were paired


def figures(
    task: EvalTask,
    outcomes: Sequence[Outcome],
    other: Sequence[Outcome] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """The figures of one method by the names of `metrics_of`; empty without outcomes.

    With those of another method, of the same items in the same order: the differences, for bits
    per byte the ratio.
    """
    found = {}
    for name in metrics_of(task) if outcomes else ():
        kind, statistic = "value", _statistic(task, outcomes, name)
        if other is not None:
            kind = "ratio" if task.measure is Measure.BITS else "difference"
            how = np.divide if kind == "ratio" else np.subtract
            statistic = _applied(how, statistic, _statistic(task, other, name))
        width = len(task.choices) if name in _OVER_CHOICES else 1
        found[name] = interval(statistic, len(outcomes), seed, resamples, kind=kind, width=width)
    return found


def _applied(how: np.ufunc, one: Statistic, two: Statistic) -> Statistic:
    return lambda drawn: how(one(drawn), two(drawn))


def interval(
    statistic: Statistic,
    items: int,
    seed: int = 0,
    resamples: int = RESAMPLES,
    *,
    kind: str = "difference",
    width: int = 1,
) -> Interval:
    """The percentile interval of a statistic of at least one item.

    `width` is how many numbers the statistic looks at for each drawn item.
    """
    estimate = float(statistic(np.arange(items)[None])[0])
    if items == 1:  # every draw is that item
        return Interval(kind, estimate, estimate, estimate, items)
    found = (
        library("scipy.stats")
        .bootstrap(
            (np.arange(items),),
            lambda drawn, axis: statistic(np.atleast_2d(drawn)),
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, _BATCH_NUMBERS // (items * width)),
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
        .confidence_interval
    )
    return Interval(kind, estimate, float(found.low), float(found.high), items)


def _statistic(task: EvalTask, outcomes: Sequence[Outcome], name: str) -> Statistic:
    def column(name: str) -> Floats:
        return np.array([outcome.values[name] for outcome in outcomes], dtype=np.float64)

    if name == "bits_per_byte":
        bits, sizes = column("nats") / math.log(2), column("bytes")
        return lambda drawn: bits[drawn].sum(axis=-1) / sizes[drawn].sum(axis=-1)
    if name in _OVER_CHOICES:
        return _f1(task, outcomes, macro=name == "macro_f1")
    values = column(name)
    return lambda drawn: values[drawn].mean(axis=-1)


def _f1(task: EvalTask, outcomes: Sequence[Outcome], *, macro: bool) -> Statistic:
    """Macro-F1 over the choices, or micro-F1; a choice that never occurs counts as 0."""
    right, named = np.zeros((2, len(outcomes), len(task.choices)))
    for row, outcome in enumerate(outcomes):
        # An answer that names nothing is a row of zeros: a miss of its class, a find of none.
        right[row, list(outcome.expected)] = 1
        named[row, list(outcome.predicted)] = 1
    hits, sizes = right * named, right + named

    def statistic(drawn: NDArray[np.intp]) -> Floats:
        # 2 TP / (2 TP + FP + FN), by class or over all.
        both, either = 2 * hits[drawn].sum(axis=-2), sizes[drawn].sum(axis=-2)
        if not macro:
            both, either = both.sum(axis=-1, keepdims=True), either.sum(axis=-1, keepdims=True)
        scores: Floats = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
        return scores.mean(axis=-1)

    return statistic


class Counts(msgspec.Struct, frozen=True):
    """Counts of the items of a task under a method."""

    done: int
    failed: dict[str, int]  # by reason
    left: int  # not run, since the run was stopped
    unanswered: int = 0  # of classifications and labels: answers that name no choice
    unfinished: int = 0


class MethodFigures(msgspec.Struct, frozen=True):
    """One method on one task, as `--json` has it; figures by the names of `metrics_of`."""

    metrics: dict[str, float]
    values: dict[str, Interval]
    intervals: dict[str, Interval]  # against the other method, over the items that both have done
    counts: Counts
    seconds: float
    tokens: int
    decoded: int


class TaskSummary(NamedTuple):
    """One task under all methods, by their names; intervals are against one of them."""

    task: EvalTask
    methods: dict[str, MethodFigures]
    against: str


def summarise_task(
    task: EvalTask,
    methods: Sequence[str],
    results: Iterable[Result],
    *,
    seed: int = 0,
    against: str = TARGET,
) -> TaskSummary:
    """Summarises one task; `results` may be in any order and include other tasks."""
    found: dict[str, dict[str, Result]] = {method: {} for method in methods}
    for result in results:
        if result.task == task.name and result.method in found:
            found[result.method][result.item] = result
    others = found.get(against, {})
    each = {
        method: _figures(task, results, others if method != against else {}, seed)
        for method, results in found.items()
    }
    return TaskSummary(task, each, against)


def _figures(
    task: EvalTask, found: Mapping[str, Result], others: Mapping[str, Result], seed: int
) -> MethodFigures:
    # In the order of the task: sums and draws do not depend on the order of the run.
    results = [found[item.id] for item in task.items if item.id in found]
    outcomes = [result.outcome for result in results if result.outcome is not None]
    ours, theirs = [], []
    for result in results:
        other = others.get(result.item)
        if result.outcome and other and other.outcome:
            ours.append(result.outcome)
            theirs.append(other.outcome)
    values = figures(task, outcomes, seed=seed)
    return MethodFigures(
        metrics={name: value.estimate for name, value in values.items()},
        values=values,
        intervals=figures(task, ours, theirs, seed=seed),
        counts=Counts(
            done=len(outcomes),
            failed=dict(Counter(result.failed for result in results if result.failed)),
            left=len(task.items) - len(results),
            unanswered=sum(bool(one.expected) and not one.predicted for one in outcomes),
            unfinished=sum(result.unfinished for result in results),
        ),
        seconds=math.fsum(result.seconds for result in results),
        tokens=sum(result.tokens for result in results),
        decoded=sum(result.decoded for result in results),
    )


def as_object(
    summaries: Sequence[TaskSummary],
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
    *,
    interrupted: bool,
) -> dict[str, Any]:
    """What `--json` writes; see docs/eval.md."""
    return {
        "tasks": {
            task.name: {
                "kind": str(task.kind),
                "measure": str(task.measure),
                "licence": task.licence,
                "items": len(task.items),
                "items_in_file": task.total,
                "cut": len(task.cut),
                "against": against,
                "methods": msgspec.to_builtins(methods),
            }
            for task, methods, against in summaries
        },
        "settings": dict(settings),
        "provenance": dict(provenance),
        "interrupted": interrupted,
    }
