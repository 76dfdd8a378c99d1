from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import f1_score

from capt_local.evaluate.metrics import Outcome, compare, interval, judge
from capt_local.evaluate.tasks import EvalTask, Item, Kind, Measure


def outcomes_of(task: EvalTask, answers: list[str | None]) -> list[Outcome]:
    return [judge(task, *pair) for pair in zip(task.items, answers, strict=True)]


def sections(count: int) -> tuple[EvalTask, list[Outcome], list[Outcome]]:
    random = np.random.default_rng(3)
    choices = ("x", "y", "z", "never")
    items = tuple(
        Item(str(n), "", "t", str(random.choice(choices[:3])), choices) for n in range(count)
    )
    task = EvalTask("made-up", Kind.CLASSIFICATION, items, Measure.CHOICE)
    said = [None if random.random() < 0.1 else str(random.choice(choices[:3])) for _ in items]
    better = [
        item.reference if random.random() < 0.4 else one
        for item, one in zip(items, said, strict=True)
    ]
    return task, outcomes_of(task, better), outcomes_of(task, said)


def test_macro_f1_is_computed_anew_from_each_draw() -> None:
    """Draws one by one through scikit-learn give the same interval."""
    task, method, target = sections(40)
    found = compare(task, method, target, seed=5, resamples=60)["macro_f1"]

    def macro_f1(outcomes: list[Outcome], drawn: np.ndarray) -> float:
        right = [outcomes[place].expected[0] for place in drawn]
        named = [(*outcomes[place].predicted, -1)[0] for place in drawn]
        labels = list(range(len(task.choices)))
        return float(f1_score(right, named, labels=labels, average="macro", zero_division=0))

    def difference(drawn: np.ndarray) -> float:
        return macro_f1(method, drawn) - macro_f1(target, drawn)

    theirs = bootstrap(
        (np.arange(40),),
        difference,
        vectorized=False,
        n_resamples=60,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(theirs))
    assert found.estimate == pytest.approx(difference(np.arange(40)))


def prose(nats: list[float]) -> list[Outcome]:
    return [Outcome({"nats": value, "bytes": 100.0}) for value in nats]


def test_the_same_answers_give_no_difference() -> None:
    items = tuple(Item(str(n), "", "t", "") for n in range(3))
    task = EvalTask("made-up", Kind.PERPLEXITY, items, Measure.BITS)
    same = compare(task, prose([1, 2, 3]), prose([1, 2, 3]))["bits_per_byte"]
    assert (same.estimate, same.low, same.high) == (1, 1, 1)
    assert same.kind == "ratio"
    half = compare(task, prose([1, 2, 3]), prose([2, 4, 6.5]))["bits_per_byte"]
    assert half.high < 0.51


def mean_of(values: np.ndarray):  # type: ignore[no-untyped-def]
    return lambda drawn: values[drawn].mean(axis=-1)


def test_a_real_difference_is_found_and_chance_mostly_is_not() -> None:
    """Over many made-up experiments without a difference, about one in twenty intervals errs."""
    errs = 0
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(size=60)
        found = interval(mean_of(noise), 60, seed=seed, resamples=800)
        errs += not found.low <= 0 <= found.high
    assert 2 <= errs <= 24
    assert interval(mean_of(noise + 1), 60).low > 0
