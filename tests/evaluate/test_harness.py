"""The harness: what is asked, how answers become results, and what an error costs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from capt_local.batch.output import differences
from capt_local.decoding.options import FinishReason, GenerateOptions, Method
from capt_local.errors import (
    ContextOverflow,
    MemoryShortage,
    ModelError,
    NumericalError,
    UsageError,
)
from capt_local.evaluate import ChoiceBy, metrics
from capt_local.evaluate.metrics import Outcome, Result, summarise_task
from capt_local.evaluate.run import EvalPlan, Finished, ResultsFile, SampleLog, run
from capt_local.evaluate.tasks import EvalTask, Item, Kind, Measure
from tests.evaluate.fake_runtime import FakeRuntime, Rules

QUESTIONS = EvalTask(
    "questions",
    Kind.CLASSIFICATION,
    tuple(
        Item(str(number), "Is it so?", f"note {number} {{input}}", reference, ("yes", "no"))
        for number, reference in enumerate(("yes", "no", "yes"))
    ),
    Measure.CHOICE,
    max_tokens=7,
)
WRITING = EvalTask(
    "writing",
    Kind.GENERATION,
    (Item("a", "Sum up.", "Fever for two days.", "two days of fever"),),
    Measure.ROUGE,
)


def plan(choice: ChoiceBy = ChoiceBy.LIKELIHOOD, **more: Any) -> EvalPlan:
    methods = {name: GenerateOptions(method=Method(name)) for name in ("target", "capt")}
    return EvalPlan(methods, choice, **more)


def outcomes(rules: Rules, tasks: Sequence[EvalTask], how: EvalPlan, **more: Any) -> list[Finished]:
    how.check(tasks)
    return list(run(FakeRuntime(rules), tasks, how, **more))  # type: ignore[arg-type]


def test_a_classification_by_its_choices() -> None:
    rules = Rules(say=lambda method, prompt, seed: "yes" if method == "capt" else "no")
    found = outcomes(rules, [QUESTIONS], plan())
    assert [one.result.key[1:] for one in found] == [
        (method, item) for item in "012" for method in ("target", "capt")
    ]
    right = [one.result.outcome.values["accuracy"] for one in found if one.result.outcome]
    assert right == [0.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    assert {call[0] for call in rules.calls} == {"choose likelihood"}
    assert all(one.result.decoded == 10 and not one.answer and one.logps for one in found)
    assert "note 0 {input}" in rules.calls[0][2] and rules.forgotten == 6


def test_a_choice_is_read_from_a_free_answer() -> None:
    words = {"0": "Answer: yes.", "1": "Yes or no", "2": "No, not at all"}
    rules = Rules(say=lambda method, prompt, seed: words[prompt.split("note ")[1][0]])
    found = outcomes(rules, [QUESTIONS], plan(ChoiceBy.FREE))
    assert [one.read for one in found[::2]] == ["yes", None, "no"]
    assert [one.answer for one in found[::2]] == list(words.values())
    whole = summarise_task(QUESTIONS, ["target", "capt"], [one.result for one in found])
    assert whole.methods["target"].metrics["accuracy"] == pytest.approx(1 / 3)
    assert (whole.methods["target"].counts.unanswered, whole.methods["target"].tokens) == (1, 9)
    assert whole.methods["capt"].intervals["accuracy"].estimate == 0
    assert whole.methods["target"].intervals == {}


def test_a_text_that_was_ended_by_its_length_is_told() -> None:
    rules = Rules(say=lambda *_: "two days of fever", finish=FinishReason.LENGTH)
    found = outcomes(rules, [WRITING], plan())
    cells = summarise_task(WRITING, ["target", "capt"], [one.result for one in found]).methods
    assert cells["target"].metrics["rougeL"] == 1.0
    assert [cell.counts.unfinished for cell in cells.values()] == [1, 1]
    assert rules.calls[0][3].max_tokens == WRITING.max_tokens
    assert rules.calls[0][3].sample.temperature == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryShortage("full"), ""),
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

    if isinstance(error, MemoryShortage):  # no fault of the item
        with pytest.raises(MemoryShortage):
            outcomes(Rules(say=say), [QUESTIONS], plan())
        return
    found = outcomes(Rules(say=say), [QUESTIONS], plan())
    assert [one.result.failed for one in found] == ["", "", "", reason, "", ""]
    assert found[3].problem == str(error)
    assert found[3].result.decoded == 10
    cells = summarise_task(QUESTIONS, ["target", "capt"], [one.result for one in found]).methods
    assert (cells["capt"].counts.done, cells["capt"].counts.failed) == (2, {reason: 1})
    # The target is right twice of three, but on the items that both have done it is as good.
    assert cells["target"].metrics["accuracy"] == pytest.approx(2 / 3)
    interval = cells["capt"].intervals["accuracy"]
    assert (interval.estimate, interval.items) == (0.0, 2)


@pytest.mark.parametrize("raw", [False, True])
def test_labels_by_a_question_each(raw: bool) -> None:
    """Of two sentences, and of two labels, one is named rightly and one is named too often."""
    labels = ("lab", "imaging")
    items = tuple(
        Item(str(n), "", note, reference, labels)
        for n, (note, reference) in enumerate([("repeat the test", "lab"), ("rest", "none")])
    )
    asked = {"lab": "A laboratory test?", "imaging": "An image?"}
    task = EvalTask(
        "asked", Kind.GENERATION, items, Measure.LABELS, no_answer="none", questions=asked
    )
    prompts: list[str] = []

    def say(method: str, prompt: str, seed: int) -> str:
        prompts.append(prompt)
        yes = ("repeat" in prompt and "A lab" in prompt) or (
            "rest\n" in prompt and "An i" in prompt
        )
        return raw * " " + ("Yes" if yes else "No")

    how = EvalPlan({"target": GenerateOptions(method=Method.TARGET)}, raw=raw)
    found = outcomes(Rules(say=say), [task], how)
    assert [one.read for one in found] == ["lab", "imaging"]
    assert all(len(one.logps) == 4 for one in found) and len(prompts) == 4
    end = "\n\nAnswer:" if raw else ""
    assert prompts[0] == f"repeat the test\n\nA laboratory test? Options:\n-Yes\n-No{end}"
    cell = summarise_task(task, ["target"], [one.result for one in found]).methods["target"]
    assert cell.metrics == {"micro_f1": pytest.approx(2 / 3), "macro_f1": 0.5}


def test_raw_text() -> None:
    raw = Rules(say=lambda *_: " no")
    found = outcomes(raw, [QUESTIONS], plan(raw=True))
    assert raw.calls[0][2].endswith("\n\nAnswer:") and found[0].read == "no"


def test_a_missing_library_is_told_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(metrics.importlib, "import_module", missing)
    with pytest.raises(UsageError, match=r"scipy.*pip install 'capt-local\[eval\]'"):
        plan().check([QUESTIONS])


def test_a_results_file_goes_on_with_the_same_run_alone(tmp_path: Path) -> None:
    path, results = tmp_path / "results", [Result("t", "capt", "1", Outcome({"accuracy": 1.0}))]
    results.append(Result("t", "target", "1", failed="does not fit", seconds=0.5))
    with contextlib.closing(ResultsFile(path)) as file:
        file.begin({"a": {"b": 1}}, differences)
        for result in results:
            file.append(result)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"task": "t", "me')  # a kill
    with contextlib.closing(ResultsFile(path)) as file:
        assert file.done == results and file.fingerprint == {"a": {"b": 1}}
        with pytest.raises(UsageError, match="being written by another run"):
            ResultsFile(path)
        with pytest.raises(UsageError, match=r"what differs: a\.b \(1, now 2\)"):
            file.begin({"a": {"b": 2}}, differences)
        file.begin({"a": {"b": 1}}, differences)
    assert path.read_bytes() == whole and path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("held", "problem"),
    [
        (b"a note of a patient", "is not of capt-local eval"),
        (b"a note\n", "is not of capt-local eval"),
        (b'{"id": "a"}\n', "is not of capt-local eval"),
        (b'{"capt_local_eval": 1, "fingerprint": {}}\n', "by another version"),
        (b'{"capt_local_eval": 2, "fingerprint": {}}\n{"task": 1}\n', "line 2: not a result"),
    ],
)
def test_a_file_that_is_no_results_file_is_left_alone(
    held: bytes, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "results"
    path.write_bytes(held)
    with pytest.raises(UsageError, match=problem):
        ResultsFile(path)
    assert path.read_bytes() == held


def test_a_file_of_answers_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "samples"
    done = Finished(Result("t", "capt", "1"), "yes", "yes", (-float("inf"), -1.0))
    failed = Finished(Result("t", "capt", "2", failed="model error"))
    with contextlib.closing(SampleLog(path, resumed=False)) as log:
        log.append(done)
        log.append(failed)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"task":"t","me')  # a kill
    with contextlib.closing(SampleLog(path, resumed=True)) as log:
        log.append(done)
    assert path.read_bytes() == whole
    for held in (b"a note of a patient", b"a note\n", whole.replace(b"answer", b"other")):
        path.write_bytes(held)
        with pytest.raises(UsageError, match="holds something already"):
            SampleLog(path, resumed=True)
        assert path.read_bytes() == held
