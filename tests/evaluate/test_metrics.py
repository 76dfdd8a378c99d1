from __future__ import annotations

import math

import pytest

from capt_local.evaluate.metrics import (
    Outcome,
    exact_match,
    field_score,
    figures,
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


def test_a_question_without_an_answer_is_right_or_wrong() -> None:
    none = "unanswerable"
    assert token_f1("Unanswerable.", [none], none) == 1
    assert token_f1("it is unanswerable I think", [none], none) == 0
    assert token_f1("unanswerable", ["a small unanswerable thing"], none) == 0


def labels_task() -> EvalTask:
    wanted = ["lab, imaging", "none", "imaging"]
    items = [Item(str(n), "", "t", ref, ("lab", "imaging")) for n, ref in enumerate(wanted)]
    return EvalTask("made-up", Kind.GENERATION, tuple(items), Measure.LABELS, no_answer="none")


def test_sets_of_labels() -> None:
    task = labels_task()
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


def test_bits_per_byte_is_a_ratio_of_sums() -> None:
    items = (Item("1", "", "a", ""), Item("2", "", "b", ""))
    task = EvalTask("made-up", Kind.PERPLEXITY, items, Measure.BITS)
    outcomes = [
        Outcome({"nats": 8 * math.log(2), "bytes": 1.0}),
        Outcome({"nats": 0.0, "bytes": 7.0}),
    ]
    assert figures(task, outcomes)["bits_per_byte"].estimate == pytest.approx(1.0)


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
