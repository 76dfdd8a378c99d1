"""The harness: what is asked, how answers become results, and what an error costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from capt_local.batch.run import readable_time
from capt_local.decoding.options import GenerateOptions, Method, SampleOptions
from capt_local.decoding.step import FinishReason
from capt_local.errors import (
    ContextOverflow,
    MemoryShortage,
    ModelError,
    NumericalError,
    UsageError,
)
from capt_local.evaluate.items import Item, Kind, Measure
from capt_local.evaluate.run import (
    ChoiceBy,
    EvalPlan,
    Finished,
    Remaining,
    Result,
    TaskRun,
    run,
    shortened,
)
from capt_local.evaluate.styles import read_style
from capt_local.evaluate.summary import summarise_task
from capt_local.evaluate.tasks import Task
from tests.evaluate.fake_runtime import FakeRuntime, Rules

QUESTIONS = Task(
    "questions",
    Kind.CLASSIFICATION,
    tuple(
        Item(str(number), "Is it so?", f"note {number} {{input}}", reference, ("yes", "no"))
        for number, reference in enumerate(("yes", "no", "yes"))
    ),
    Measure.CHOICE,
    max_tokens=7,
)
TEXTS = Task(
    "texts",
    Kind.PERPLEXITY,
    (Item("a", "", "fever", ""), Item("b", "", "cough é", "")),
    Measure.BITS,
)
WRITING = Task(
    "writing",
    Kind.GENERATION,
    (Item("a", "Sum up.", "Fever for two days.", "two days of fever"),),
    Measure.ROUGE,
)


def task_run(task: Task, style: str = "zero-shot", **more: Any) -> TaskRun:
    asked = None if task.kind is Kind.PERPLEXITY else read_style(style, **more)
    return TaskRun(task, asked)


def plan(choice: ChoiceBy = ChoiceBy.PER_BYTE, **more: Any) -> EvalPlan:
    methods = {name: GenerateOptions(method=Method(name)) for name in ("target", "capt")}
    return EvalPlan(methods, choice, **more)


def outcomes(rules: Rules, runs: Sequence[TaskRun], how: EvalPlan, **more: Any) -> list[Finished]:
    how.check(runs)
    return list(run(FakeRuntime(rules), runs, how, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("choice", [ChoiceBy.LIKELIHOOD, ChoiceBy.PER_BYTE, ChoiceBy.CONSTRAINED])
def test_a_classification_by_its_choices(choice: ChoiceBy) -> None:
    rules = Rules(say=lambda method, prompt, seed: "yes" if method == "capt" else "no")
    found = outcomes(rules, [task_run(QUESTIONS)], plan(choice))
    assert [one.result.place[1:] for one in found] == [
        *(("target", "0"), ("capt", "0")),
        *(("target", "1"), ("capt", "1")),
        *(("target", "2"), ("capt", "2")),
    ]
    right = [one.result.outcome.values["accuracy"] for one in found if one.result.outcome]
    assert right == [0.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    assert {call[0] for call in rules.calls} == {
        f"choose {choice.removeprefix('likelihood-') if choice.endswith('byte') else choice}"
    }
    assert all(one.result.decoded == 10 and not one.answers for one in found)
    assert bool(found[0].logps) == (choice is not ChoiceBy.CONSTRAINED)
    assert "note 0 {input}" in rules.calls[0][2]
    assert rules.forgotten == 6


def test_a_free_answer_is_read_by_the_style() -> None:
    words = {"0": "Answer: yes.", "1": "Yes or no", "2": "No, not at all"}
    rules = Rules(say=lambda method, prompt, seed: words[prompt.split("note ")[1][0]])
    found = outcomes(rules, [task_run(QUESTIONS)], plan(ChoiceBy.FREE))
    assert [one.said for one in found[::2]] == ["yes", None, "no"]
    assert [one.answers for one in found[::2]] == [(word,) for word in words.values()]
    whole = summarise_task(QUESTIONS, ["target", "capt"], [one.result for one in found])
    assert whole.cells[0].metrics["accuracy"] == pytest.approx(1 / 3)
    assert (whole.cells[0].unanswered, whole.cells[0].tokens) == (1, 9)
    assert whole.cells[1].intervals["accuracy"].estimate == 0
    assert whole.cells[0].intervals == {}


def test_each_task_is_answered_as_its_style_needs() -> None:
    other = dataclasses.replace(QUESTIONS, name="other")
    runs = [task_run(QUESTIONS), task_run(other, "chain-of-thought")]
    how = EvalPlan(plan().methods)
    rules = Rules(say=lambda *_: "yes")
    outcomes(rules, runs, how)
    assert [call[0] for call in rules.calls] == ["choose likelihood"] * 6 + ["generate"] * 6
    with pytest.raises(UsageError, match="--choice free"):
        plan(ChoiceBy.LIKELIHOOD).check(runs)


def test_samples_have_seeds_of_their_own_and_most_decide() -> None:
    rules = Rules(say=lambda method, prompt, seed: "no" if seed == 40 else "yes")
    style = task_run(QUESTIONS, samples=3)
    how = plan(ChoiceBy.FREE, temperature=0.5, max_tokens=4)
    options = {
        name: GenerateOptions(method=Method(name), sample=SampleOptions(seed=40))
        for name in how.methods
    }
    how = EvalPlan(options, ChoiceBy.FREE, temperature=0.5, max_tokens=4)
    found = outcomes(rules, [style], how)
    assert [call[3].sample.seed for call in rules.calls[:3]] == [40, 41, 42]
    assert {(call[3].sample.temperature, call[3].max_tokens) for call in rules.calls} == {(0.5, 4)}
    assert found[0].answers == ("no", "yes", "yes")
    assert (found[0].said, found[0].result.tokens) == ("yes", 9)


def test_prose_is_scored_and_compared_by_its_ratio() -> None:
    rules = Rules(say=lambda method, prompt, seed: "6" if method == "capt" else "12")
    found = outcomes(rules, [task_run(TEXTS)], plan())
    results = [one.result for one in found]
    cell = summarise_task(TEXTS, ["target", "capt"], results).cells[1]
    assert cell.metrics["bits_per_byte"] == pytest.approx(12 / 13 / 0.6931471805599453)
    interval = cell.intervals["bits_per_byte"]
    assert (interval.estimate, interval.low, interval.high, interval.ratio) == (0.5, 0.5, 0.5, True)
    assert (cell.tokens, rules.calls[0][0]) == (10, "score")


def test_a_text_that_was_ended_by_its_length_is_told() -> None:
    rules = Rules(say=lambda *_: "two days of fever", finish=FinishReason.LENGTH)
    found = outcomes(rules, [task_run(WRITING)], plan())
    cells = summarise_task(WRITING, ["target", "capt"], [one.result for one in found]).cells
    assert cells[0].metrics["rougeL"] == 1.0
    assert [cell.unfinished for cell in cells] == [1, 1]
    assert rules.calls[0][3].max_tokens == WRITING.max_tokens
    assert rules.calls[0][3].sample.temperature == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ContextOverflow({"expert": 900}, 256), "does not fit"),
        (UsageError("no"), "refused"),
        (NumericalError("no"), "not finite"),
        (ModelError("no"), "model error"),
    ],
)
def test_an_error_costs_one_item_under_one_method(error: Exception, reason: str) -> None:
    def say(method: str, prompt: str, seed: int) -> str:
        if method == "capt" and "note 1" in prompt:
            raise error
        return "yes"

    found = outcomes(Rules(say=say), [task_run(QUESTIONS)], plan())
    assert [one.result.failed for one in found] == ["", "", "", reason, "", ""]
    assert found[3].problem == str(error)
    assert found[3].result.decoded == 10
    cells = summarise_task(QUESTIONS, ["target", "capt"], [one.result for one in found]).cells
    assert (cells[1].done, cells[1].failed) == (2, {reason: 1})
    # The target is right twice of three, but on the items that both have done it is as good.
    assert cells[0].metrics["accuracy"] == pytest.approx(2 / 3)
    interval = cells[1].intervals["accuracy"]
    assert (interval.estimate, interval.items) == (0.0, 2)


def test_what_is_no_fault_of_an_item_ends_the_run() -> None:
    def say(method: str, prompt: str, seed: int) -> str:
        raise MemoryShortage("full")

    with pytest.raises(MemoryShortage):
        outcomes(Rules(say=say), [task_run(QUESTIONS)], plan())


@pytest.mark.parametrize("choice", [ChoiceBy.PER_BYTE, ChoiceBy.FREE])
def test_what_is_half_done_when_it_is_stopped_is_dropped(choice: ChoiceBy) -> None:
    rules = Rules()
    stop_at = 4

    def cancel() -> bool:
        return len(rules.calls) >= stop_at

    found = outcomes(rules, [task_run(QUESTIONS), task_run(TEXTS)], plan(choice), cancel=cancel)
    assert len(found) == stop_at - 1
    cells = summarise_task(QUESTIONS, ["target", "capt"], [one.result for one in found]).cells
    assert [(cell.done, cell.left) for cell in cells] == [(2, 1), (1, 2)]
    assert cells[1].intervals["accuracy"].items == 1
    none = summarise_task(TEXTS, ["target", "capt"], [one.result for one in found]).cells
    assert [(cell.metrics, cell.intervals, cell.left) for cell in none] == [({}, {}, 2)] * 2


def test_a_resumed_run_is_the_run() -> None:
    def say(method: str, prompt: str, seed: int) -> str:
        return "no" if method == "capt" and "note 1" in prompt else "yes"

    def figures(finished: Sequence[Finished]) -> list[tuple[object, ...]]:
        return [(*one.result.place, one.result.outcome) for one in finished]

    whole = outcomes(Rules(say=say), [task_run(QUESTIONS)], plan())
    rules = Rules(say=say)
    done = [one.result.place for one in whole[:2]]
    rest = outcomes(rules, [task_run(QUESTIONS)], plan(), done=done)
    assert figures([*whole[:2], *rest]) == figures(whole)
    assert len(rules.calls) == 4


def test_plans_that_would_do_something_else_are_refused() -> None:
    with pytest.raises(UsageError, match="--choice free"):
        plan().check([task_run(QUESTIONS, samples=2)])
    with pytest.raises(UsageError, match="--choice free"):
        plan().check([task_run(QUESTIONS, "chain-of-thought")])
    with pytest.raises(UsageError, match="all the same"):
        plan(ChoiceBy.FREE).check([task_run(QUESTIONS, samples=2)])
    with pytest.raises(UsageError, match="all the same"):
        plan(ChoiceBy.FREE, temperature=0.0).check([task_run(QUESTIONS, "self-consistency")])
    plan(ChoiceBy.FREE).check([task_run(QUESTIONS, "self-consistency")])
    with pytest.raises(UsageError, match="Tasks 1 and 3 have the same name"):
        plan().check([task_run(QUESTIONS), task_run(TEXTS), task_run(QUESTIONS)])


def test_letters_are_weighed_where_letters_were_shown() -> None:
    rules = Rules(say=lambda *_: "B")
    found = outcomes(rules, [task_run(QUESTIONS, "lettered")], plan())
    assert [one.said for one in found] == ["no"] * 6
    raw = Rules(say=lambda *_: " no")
    found = outcomes(raw, [task_run(QUESTIONS)], plan(raw=True))
    assert raw.calls[0][2].endswith("\n\nAnswer:")
    assert found[0].said == "no"


def test_inputs_are_cut_between_characters_and_counted() -> None:
    assert shortened(TEXTS, None) == (TEXTS, frozenset())
    cut, ids = shortened(TEXTS, 7)
    assert [item.input for item in cut.items] == ["fever", "cough "]
    assert ids == {"b"}
    with pytest.raises(UsageError, match="leaves nothing"):
        shortened(Task("t", Kind.PERPLEXITY, (Item("a", "", "é", ""),), Measure.BITS), 1)
    rules = Rules(say=lambda *_: "1")
    found = list(run(FakeRuntime(rules), [TaskRun(cut, None, ids)], plan()))  # type: ignore[arg-type]
    assert [one.result.cut for one in found] == [False, False, True, True]
    assert summarise_task(cut, ["target", "capt"], [one.result for one in found]).cut == 1


def test_what_is_left_is_estimated_from_what_was_done() -> None:
    runs, methods = [task_run(QUESTIONS), task_run(TEXTS)], ["target", "capt"]
    remaining = Remaining(runs, methods)
    assert (remaining.total, remaining.share, remaining.seconds) == (10, 0.0, None)
    for method, seconds in (("target", 1.0), ("capt", 3.0)):
        remaining.add(Result("questions", method, "0", failed="x", seconds=seconds))
    # Two more items of both, and four texts that take what an item took on average.
    assert remaining.seconds == pytest.approx(2 * 1 + 2 * 3 + 4 * 2)
    assert remaining.share == 0.2
    assert [readable_time(s) for s in (4.4, 100, 11_000)] == ["4 s", "2 min", "3 h 03 min"]


def test_labels_by_a_question_each() -> None:
    labels = ("lab", "imaging")
    items = tuple(
        Item(str(n), "", note, reference, labels)
        for n, (note, reference) in enumerate([("repeat the test", "lab"), ("rest", "none")])
    )
    task = Task(
        "asked",
        Kind.GENERATION,
        items,
        Measure.LABELS,
        no_answer="none",
        questions={"lab": "A laboratory test?", "imaging": "An image?"},
    )
    rules = Rules(
        say=lambda method, text, seed: "Yes" if "test\n" in text and "A lab" in text else "No"
    )
    how = EvalPlan({"target": GenerateOptions(method=Method.TARGET)})
    found = outcomes(rules, [task_run(task)], how)
    assert [one.said for one in found] == ["lab", "none"]
    assert all(len(one.logps) == 4 for one in found)
    results = [one.result for one in found]
    (cell,) = summarise_task(task, ["target"], results).cells
    assert cell.metrics == {"micro_f1": 1.0, "macro_f1": 0.5}
