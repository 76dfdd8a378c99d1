from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capt_local.errors import UsageError
from capt_local.evaluate.items import Item, Kind, Measure
from capt_local.evaluate.tasks import Task, read_examples, read_task

DATA = Path(__file__).parent.parent / "data" / "tasks"
SECRET = "Mrs Miller"
GOOD: dict[str, Any] = {
    "id": "1",
    "task": "made-up",
    "kind": "classification",
    "instruction": "Say which.",
    "input": f"{SECRET} coughs.",
    "reference": "yes",
    "licence": "Apache-2.0",
    "choices": ["yes", "no"],
}


def written(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / f"{SECRET}.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_bytes("\n".join(texts).encode("utf-8", "surrogatepass"))
    return path


def changed(**values: object) -> dict[str, object]:
    return {key: value for key, value in {**GOOD, **values}.items() if value is not ...}


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as error:
        read_task(path)
    said = str(error.value)
    assert SECRET not in said and "\n" not in said
    return said


def test_a_classification() -> None:
    task = read_task(DATA / "section.jsonl")
    assert (task.name, task.kind, task.measure) == ("section", Kind.CLASSIFICATION, Measure.CHOICE)
    assert [item.id for item in task.items] == ["s1", "s2", "s3", "s4"]
    assert task.items[0].input == (
        "Doctor: Does {anything} run in the family?\nPatient: My father had ${gout}."
    )
    assert task.choices == ("FAMILY", "ALLERGY", "PLAN") and task.same_choices
    assert (task.licence, task.total, len(task.digest)) == ("Apache-2.0", 4, 64)


def test_a_generation_and_prose() -> None:
    assert read_task(DATA / "summary.jsonl").measure is Measure.ROUGE
    prose = read_task(DATA / "prose.jsonl")
    assert prose.kind is Kind.PERPLEXITY
    assert prose.items[1].input == "Fever of 38.6 °C in the evening, no rigors."
    assert prose.items[1].reference == ""
    assert read_examples(DATA / "prose.jsonl") is None


def test_a_limit_draws_items_and_keeps_their_order(tmp_path: Path) -> None:
    path = written(tmp_path, *(changed(id=str(number)) for number in range(50)))
    drawn = read_task(path, limit=10, seed=1)
    ids = [int(item.id) for item in drawn.items]
    assert len(ids) == 10 and ids == sorted(ids) and ids != list(range(10))
    assert drawn == read_task(path, limit=10, seed=1)
    assert drawn.items != read_task(path, limit=10, seed=2).items
    assert (drawn.total, drawn.digest) == (50, read_task(path).digest)
    assert len(read_task(path, limit=99).items) == 50
    with pytest.raises(UsageError):
        read_task(path, limit=0)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (changed(id=...), 'no "id"'),
        (changed(id=True), '"id" must be'),
        (changed(id=" "), '"id" must be'),
        (changed(id="a\nb"), '"id" must be'),
        (changed(task=...), 'no "task"'),
        (changed(task=3), '"task" must be a text'),
        (changed(kind=...), 'no "kind"'),
        (changed(kind="guessing"), '"kind" must be one of classification, generation'),
        (changed(kind="generation"), '"choices" are only for a classification'),
        (changed(kind="perplexity"), 'no "text"'),
        (changed(kind="perplexity", text=""), '"text" is empty'),
        (changed(instruction=...), 'no "instruction"'),
        (changed(input=...), 'no "input"'),
        (changed(input="\n "), '"input" is empty'),
        (changed(input=None), '"input" must be a text'),
        (changed(reference=...), 'no "reference"'),
        (changed(reference=""), '"reference" is empty'),
        (changed(reference="Yes"), '"reference" is not one of "choices"'),
        (changed(choices=...), 'no "choices"'),
        (changed(choices=["yes"]), '"choices" must be at least two'),
        (changed(choices=["yes", "no", " Yes"]), "begins or ends with a space"),
        (changed(choices=["yes", "no", "YES"]), 'two of "choices" are the same'),
        (changed(choices=["yes", 3]), '"choices" must be a list of texts'),
        (changed(licence=1), '"licence" must be a text'),
        (changed(input="\ud800"), "half of a character"),
        (changed(**{"\ud800": 1}), "half of a character"),
        ('{"id": "1", "id": "2"}', "a key stands there twice"),
        ('{"id": "1", "x": {"a": 1, "a": 2}}', "a key stands there twice"),
        ('{"id": NaN}', "NaN"),
        ('{"id": -Infinity}', "NaN"),
        ('{"id": 1e999}', "too large"),
        ("[" * 100_000, "nested too deeply"),
        (f'{{"input": "{SECRET}', "not JSON"),
        ("[1]", "not a JSON object"),
        ("\ufeff{}", "not JSON"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, line: object, said: str) -> None:
    message = refused(written(tmp_path, changed(id="0"), "", line))
    assert message.startswith("The task file, line 3: ")
    assert said in message
    assert "more" not in message


def test_the_first_mistake_is_told_and_the_others_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, changed(input=...), GOOD, changed(id="3"), "{", changed(id="3"))
    assert refused(path) == 'The task file, line 2: no "input". 3 more lines are wrong too.'
    assert refused(written(tmp_path, "{", GOOD, GOOD)).endswith("1 more line is wrong too.")


def test_ids_kinds_and_names_must_go_together(tmp_path: Path) -> None:
    assert 'line 2: this "id" stood' in refused(written(tmp_path, GOOD, GOOD))
    other = changed(id="2", task="another")
    assert 'line 2: "task" is not that' in refused(written(tmp_path, GOOD, other))
    prose = {"id": "2", "task": "made-up", "kind": "perplexity", "text": "A text."}
    assert 'line 2: "kind" is not that' in refused(written(tmp_path, GOOD, prose))
    assert '"task" must be' in refused(written(tmp_path, changed(task=SECRET)))


@pytest.mark.parametrize(
    "values",
    [
        {"items": ()},
        {"measure": Measure.BITS},
        {"max_tokens": 0},
        {"name": "two words"},
        {"items": (Item("1", "", "t", "x", ("x", "y")),) * 2},
        {"items": (Item("1", "", "t", "z", ("x", "y")),)},
    ],
)
def test_a_task_checks_itself(values: dict[str, Any]) -> None:
    right: dict[str, Any] = {
        "name": "made-up",
        "kind": Kind.CLASSIFICATION,
        "items": (Item("1", "", "t", "x", ("x", "y")),),
        "measure": Measure.CHOICE,
    }
    assert Task(**right).choices == ("x", "y")
    with pytest.raises(UsageError):
        Task(**{**right, **values})
