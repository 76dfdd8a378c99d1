from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import f1_score

from capt_local.evaluate.metrics import (
    Outcome,
    exact_match,
    field_score,
    figures,
    interval,
    judge,
    named_labels,
    rouge,
    token_f1,
)
from capt_local.evaluate.tasks import EvalTask, Item, Kind, Measure

CHOICES = ("x", "y", "z")


def classification(references: list[str], choices: tuple[str, ...] = CHOICES) -> EvalTask:
    items = [Item(str(n), "", "text", ref, choices) for n, ref in enumerate(references)]
    return EvalTask("made-up", Kind.CLASSIFICATION, tuple(items), Measure.CHOICE)


def judged(task: EvalTask, answers: list[str | None]) -> list[Outcome]:
    return [judge(task, *pair) for pair in zip(task.items, answers, strict=True)]


def estimates(task: EvalTask, answers: list[str | None]) -> dict[str, float]:
    found = figures(task, judged(task, answers), resamples=9)
    return {name: value.estimate for name, value in found.items()}


def test_an_unanswered_question_is_wrong() -> None:
    found = estimates(classification(["x", "x", "y"]), ["x", None, "y"])
    assert found["accuracy"] == pytest.approx(2 / 3)
    # x: one of two found, none wrong; y: right; z never comes up and has 0.
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_rouge_by_hand() -> None:
    # Stems: the reference has "patient cough sinc monday", the answer three of them in order.
    found = rouge("Patients coughing Monday", ["patient coughs since Monday"])
    precision, recall = 3 / 3, 3 / 4
    assert found["rouge1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert found["rougeL"] == found["rouge1"]
    assert found["rouge2"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert rouge("", ["a word"]) == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}
    assert rouge("word", ["other", "word"])["rouge1"] == 1.0


def test_spans_by_the_rules_of_squad() -> None:
    assert exact_match("A small, left effusion.", ["the small left effusion"]) == 1
    assert exact_match("small effusion", ["a small left effusion", "large"]) == 0
    assert token_f1("small effusion", ["a small left effusion"]) == pytest.approx(4 / 5)
    assert token_f1("x", ["y", "x"]) == 1
    assert token_f1("", ["y"]) == 0

    none = "unanswerable"  # is right or wrong
    assert token_f1("Unanswerable.", [none], none) == 1
    assert token_f1("it is unanswerable I think", [none], none) == 0
    assert token_f1("unanswerable", ["a small unanswerable thing"], none) == 0


def test_sets_of_labels() -> None:
    wanted = ["lab, imaging", "none", "imaging"]
    items = [Item(str(n), "", "t", ref, ("lab", "imaging")) for n, ref in enumerate(wanted)]
    task = EvalTask("made-up", Kind.GENERATION, tuple(items), Measure.LABELS, no_answer="none")
    found = estimates(task, ["Imaging; lab", "lab", "none"])
    # lab: 1 hit, 1 false; imaging: 1 hit, 1 missed.
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    outcomes = judged(task, ["Imaging; lab", "lab", "none"])
    assert [one.values["exact"] for one in outcomes] == [1, 0, 0]
    assert [one.values["exact"] for one in judged(task, ["", "None.", ""])] == [0, 1, 0]
    assert [one.values["exact"] for one in judged(task, ["?", "I cannot say", ""])] == [0, 0, 0]


def test_labels_are_read_from_a_list() -> None:
    labels = ("lab", "imaging", "patient instructions")
    assert named_labels("Patient  instructions,\n- LAB.", labels) == ("lab", "patient instructions")
    assert named_labels("labs, imaging now", labels) == ()


@pytest.mark.parametrize(
    "wanted, found, score",
    [
        ("Twice Daily", "twice  daily", 1.0),
        (0.1 + 0.2, 0.3, 1.0),
        (40, "40", 0.0),
        (1, True, 0.0),
        (None, None, 1.0),
        ([], [], 1.0),
        (["a", "b"], ["b", "c"], 0.5),
        ([{"n": "a", "d": 1}, {"n": "b", "d": 2}], [{"n": "A", "d": 1.0}], 2 / 3),
        ({"a": "x", "b": 2}, {"a": "x", "b": 3}, 0.5),
        ({"a": 1}, "text", 0.0),
    ],
)
def test_fields_of_a_json_answer(wanted: object, found: object, score: float) -> None:
    assert field_score(wanted, found) == pytest.approx(score)


def test_a_task_of_fields_has_a_figure_for_each() -> None:
    items = (
        Item("1", "", "x", '{"dose": "5 mg", "drugs": ["a"]}'),
        Item("2", "", "x", '{"dose": "6 mg", "since": 2019}'),
    )
    task = EvalTask("t", Kind.GENERATION, items, measure=Measure.FIELDS)
    found = estimates(task, ['{"dose": "5 MG", "drugs": ["b"]}', "no JSON"])
    assert found == {"fields": 0.25, "dose": 0.5, "drugs": 0.5, "since": 0.5}


def test_macro_f1_is_computed_anew_from_each_draw() -> None:
    """Draws one by one through scikit-learn give the same interval."""
    random = np.random.default_rng(3)
    right = [str(random.choice(CHOICES)) for _ in range(40)]
    said = [None if random.random() < 0.1 else str(random.choice(CHOICES)) for _ in right]
    better = [a if random.random() < 0.4 else b for a, b in zip(right, said, strict=True)]
    task = classification(right, (*CHOICES, "never"))
    method, target = judged(task, better), judged(task, said)
    found = figures(task, method, target, seed=5, resamples=60)["macro_f1"]

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
    task = EvalTask("made-up", Kind.PERPLEXITY, (Item("1", "", "t", ""),), Measure.BITS)
    same = figures(task, prose([1, 2, 3]), prose([1, 2, 3]))["bits_per_byte"]
    assert (same.estimate, same.low, same.high) == (1, 1, 1)
    assert same.kind == "ratio"
    half = figures(task, prose([1, 2, 3]), prose([2, 4, 6.5]))["bits_per_byte"]
    assert half.high < 0.51
    # A ratio of sums: 8 bits in 8 bytes.
    sums = [Outcome({"nats": 8 * math.log(2), "bytes": 1.0}), Outcome({"nats": 0.0, "bytes": 7.0})]
    assert figures(task, sums)["bits_per_byte"].estimate == pytest.approx(1.0)


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
