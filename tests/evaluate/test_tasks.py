"""Items from JSON Lines, and the data sets that need credentials (made-up rows)."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.errors import UsageError
from capt_local.evaluate.tasks import (
    EvalTask,
    Item,
    Kind,
    Measure,
    folded,
    messages,
    named_choice,
    read_answer,
    read_task,
    shortened,
    text,
)
from capt_local.prompting.messages import Message

DATA = Path(__file__).parent.parent / "data" / "tasks"
DOCS = Path(__file__).parent.parent.parent / "docs" / "tasks.md"
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
    message = str(error.value)
    assert SECRET not in message and "\n" not in message
    return message


def test_the_three_kinds() -> None:
    task = read_task(DATA / "section.jsonl")
    assert (task.name, task.kind, task.measure) == ("section", Kind.CLASSIFICATION, Measure.CHOICE)
    assert [item.id for item in task.items] == ["s1", "s2", "s3", "s4"]
    assert task.items[0].input == (
        "Doctor: Does {anything} run in the family?\nPatient: My father had ${gout}."
    )
    assert task.choices == ("FAMILY", "ALLERGY", "PLAN") and task.same_choices
    assert (task.licence, task.total, len(task.digest)) == ("Apache-2.0", 4, 64)
    assert read_task(DATA / "summary.jsonl").measure is Measure.ROUGE
    prose = read_task(DATA / "prose.jsonl")
    assert prose.kind is Kind.PERPLEXITY
    assert prose.items[1].input == "Fever of 38.6 °C in the evening, no rigors."


def test_items_may_say_what_they_are_measured_by(tmp_path: Path) -> None:
    line = changed(kind="generation", choices=..., reference="left", alternatives=["the left"])
    task = read_task(written(tmp_path, {**line, "measure": "span", "no_answer": "unanswerable"}))
    assert (task.measure, task.no_answer) == (Measure.SPAN, "unanswerable")
    assert task.items[0].references == ("left", "the left")
    labels = changed(kind="generation", measure="labels", reference="yes, no", no_answer="none")
    assert read_task(written(tmp_path, labels)).measure is Measure.LABELS


def test_what_the_documentation_shows_is_read(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```json\n(.*?)^```", DOCS.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    kinds = [read_task(written(tmp_path, line)).kind for line in block.splitlines()]
    assert kinds == ["classification", "generation", "perplexity"]


def test_a_limit_draws_items_and_their_order_stays(tmp_path: Path) -> None:
    path = written(tmp_path, *(changed(id=str(number)) for number in range(50)))
    drawn = read_task(path, limit=10, seed=1)
    ids = [int(item.id) for item in drawn.items]
    assert len(ids) == 10 and ids == sorted(ids) and ids != list(range(10))
    assert drawn == read_task(path, limit=10, seed=1)
    assert drawn.items != read_task(path, limit=10, seed=2).items
    assert (drawn.total, drawn.digest) == (50, read_task(path).digest)
    assert len(read_task(path, limit=99).items) == 50


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (changed(id=...), "id is missing"),
        (changed(id="a\nb"), '"id" must be'),
        (changed(task=SECRET), "task must be 1 to 64 letters"),
        (changed(kind="guessing"), "kind is none of the words"),
        (changed(kind="generation"), '"choices" are only for a classification'),
        (changed(measure="bits"), '"measure" is none of this "kind"'),
        (
            changed(kind="generation", choices=..., measure="fields"),
            '"reference" is no JSON object',
        ),
        (changed(kind="perplexity"), '"text" is empty'),
        (changed(input="\n "), '"input" is empty'),
        (changed(reference=""), '"reference" is empty'),
        (changed(reference="Yes"), '"reference" is not one of "choices"'),
        (changed(choices=...), 'no "choices"'),
        (changed(choices=["yes"]), '"choices" must be at least two'),
        (changed(choices=["yes", "no", " Yes"]), "begins or ends with a space"),
        (changed(choices=["yes", "no", "YES"]), 'two of "choices" are the same'),
        (changed(input="\ud800"), "half of a character"),
        (f'{{"input": "{SECRET}', "not JSON"),
        (GOOD | {"id": "0"}, 'this "id" stood'),
        (changed(task="another"), 'is not that of the first line'),
        ({"id": "2", "task": "made-up", "kind": "perplexity", "text": "A."}, "is not that of"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_reported_with_its_line(
    tmp_path: Path, line: object, problem: str
) -> None:
    message = refused(written(tmp_path, changed(id="0"), "", line))
    assert message.startswith("The task file, line 3: ")
    assert problem in message
    assert "more" not in message


def test_the_first_mistake_is_reported_and_the_others_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, changed(id=...), GOOD, changed(id="3"), "{", changed(id="3"))
    assert refused(path) == "The task file, line 2: id is missing. 3 more lines are wrong too."


def test_inputs_are_cut_between_characters() -> None:
    items = (Item("a", "", "fever", ""), Item("b", "", "cough é", ""))
    task = EvalTask("texts", Kind.PERPLEXITY, items, Measure.BITS)
    assert shortened(task, None) == task
    cut = shortened(task, 7)
    assert [item.input for item in cut.items] == ["fever", "cough "] and cut.cut == {"b"}
    with pytest.raises(UsageError, match="leaves nothing"):
        shortened(EvalTask("t", Kind.PERPLEXITY, (Item("a", "", "é", ""),), Measure.BITS), 1)


# Data sets.


def data_set(name: str, *path: str) -> EvalTask:
    return read_task(Path(f"{name}={DATA.joinpath(*path)}"))


def test_mednli_in_words() -> None:
    words = data_set("mednli-words", "mednli", "mli_test_v1.jsonl")
    assert (words.measure, words.items[1].id) == (Measure.CHOICE, "made-up-2")
    assert [item.reference for item in words.items] == ["No", "Yes", "It's impossible to say"]
    asked = 'Does "Her temperature was 39.4 °C on arrival" mean that "She had a fever."?'
    assert words.items[1].input == asked and words.items[1].instruction == ""
    mapping = {  # of Lehman et al., `get_mapping`
        **dict.fromkeys(("yes", "true", "always", "entailment"), "Yes"),
        **dict.fromkeys(("no", "false", "never", "contradiction"), "No"),
        **dict.fromkeys(("maybe", "it is not possible to tell", "inconclusive"), "neutral"),
        **dict.fromkeys(("sometimes", "neutral", "neither", "it's impossible to say"), "neutral"),
        "it is not possible to say": "neutral",
    }
    for answer, wanted in mapping.items():
        right = "It's impossible to say" if wanted == "neutral" else wanted
        for said in (answer, f"{answer.capitalize()}."):
            assert read_answer(said, words.items[0], words) == right
    assert read_answer("Perhaps", words.items[0], words) is None


def test_radqa() -> None:
    task = data_set("radqa", "radqa", "test.json")
    assert (task.kind, task.measure, len(task.items)) == (Kind.GENERATION, Measure.SPAN, 3)
    assert task.items[0].references == ("a small left effusion", "small left effusion")
    assert task.items[1].reference == task.no_answer == "unanswerable"
    assert (
        task.items[2].input
        == "Report:\nIMPRESSION: Small effusion.\n\nQuestion: Is there any effusion?"
    )


def test_clip() -> None:
    task = data_set("clip-questions", "clip", "test_ids.csv")
    assert (task.kind, task.measure) == (Kind.GENERATION, Measure.LABELS)
    assert [(item.id, item.reference) for item in task.items] == [
        ("9001-0", "none"),
        ("9001-1", "appointment, lab"),
        ("9002-0", "patient instructions"),
    ]
    own, near = (
        "Your wound is \"clean '' .",
        "Please see Dr. [**Made Up**] and repeat the blood test .",
    )
    assert task.items[0].input == f"Context: {own} {near}\n\nSentence: {own}"
    assert task.items[1].input == f"Context: {own} {near}\n\nSentence: {near}"
    assert task.items[2].input.startswith("Context: Do n't drive for a week .\n")  # another note
    examples = data_set("clip-questions", "clip", "train_ids.csv")
    assert [item.id for item in examples.items] == ["9003-0"] and examples.digest != task.digest
    assert list(task.questions) == list(task.choices)
    assert not any(item.instruction for item in task.items)


def test_rows_of_data_sets_that_are_wrong_are_named_without_their_text(tmp_path: Path) -> None:
    row = {"pairID": "1", "sentence1": SECRET, "sentence2": "b", "gold_label": "entailment"}
    path = written(
        tmp_path, row, {**row, "pairID": "2", "gold_label": SECRET}, {"pairID": "3"}, row
    )
    message = refused(Path(f"mednli-words={path}"))
    assert "line 2: gold_label is none of the words" in message and "2 more lines" in message
    (tmp_path / "test.json").write_text('{"data": [{"paragraphs": [{"context": "x"}]}]}')
    assert "qas is missing" in refused(Path(f"radqa={tmp_path / 'test.json'}"))
    shutil.copytree(DATA / "clip", tmp_path / "clip")
    sentences = tmp_path / "clip" / "sentence_level.csv"
    sentences.write_text(sentences.read_text().replace("['I-", f"[{SECRET} 'I-", 1))
    assert "not a list of texts" in refused(
        Path(f"clip-questions={tmp_path / 'clip' / 'test_ids.csv'}")
    )
    assert "there is no such file" in refused(Path(f"clip-questions={tmp_path / 'test_ids.csv'}"))


YES_NO = ("yes", "no", "maybe")
LETTERS = ("A", "B", "C", "D")
SECTIONS = ("FAM/SOCHX", "CC", "PLAN", "OTHER_HISTORY", "LABS")
TASK = EvalTask(
    "made-up",
    Kind.CLASSIFICATION,
    tuple(Item(str(n), "Is it so?", f"note {n} ${{x}}", "yes", YES_NO) for n in range(4)),
    Measure.CHOICE,
    digest="ab",
)
ASKED = "Is it so?\n\nnote 1 ${x}\n\nReply with one of these and nothing else: yes, no, maybe"


def test_a_question() -> None:
    item = TASK.items[1]
    assert messages(item, TASK) == [Message("user", ASKED)]
    assert text(item, TASK) == f"{ASKED}\n\nAnswer:"
    writing = EvalTask("w", Kind.GENERATION, (Item("a", "Sum up.", "x", "y"),), Measure.ROUGE)
    assert messages(writing.items[0], writing) == [Message("user", "Sum up.\n\nx")]


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("yes", "yes"),
        ("**No**", "no"),
        ("Yes, no change is needed.", "yes"),
        ("The answer is maybe.", "maybe"),
        ("From what is said I would say yes.\n\nQuestion: is it so?\nno", "yes"),
        ("yesterday", None),
        ("not yes", None),
        ("It isn't yes", None),
        ("yes or no", None),
        ("either yes or no", None),
        ("", None),
    ],
)
def test_an_answer_in_words(answer: str, named: str | None) -> None:
    assert named_choice(answer, YES_NO) == named


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("C) the third", "C"),
        ("D: none of these", "D"),
        ("B\nbecause it is so", "B"),
        ("A 67-year-old man comes", None),
        ("A or B", None),
        ("E", None),
    ],
)
def test_an_answer_that_is_a_letter(answer: str, named: str | None) -> None:
    assert named_choice(answer, LETTERS) == named


def test_the_longer_of_two_choices_is_the_one_that_is_named() -> None:
    choices = ("history", "history of illness")
    assert named_choice("History of illness.", choices) == "history of illness"
    assert named_choice("It is the history", choices) == "history"
    assert named_choice("It is the history of illness", choices) == "history of illness"
    assert named_choice("not entailed", ("entailed", "not entailed")) == "not entailed"


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=4))
def test_whatever_is_answered_a_choice_or_none_is_read(answer: str, choices: list[str]) -> None:
    distinct = [one for one in {folded(one): one.strip() for one in choices}.values() if one]
    if len(distinct) >= 2:
        assert named_choice(answer, distinct) in {*distinct, None}


@given(st.sampled_from([YES_NO, LETTERS, SECTIONS]), st.data())
def test_a_choice_names_itself(choices: tuple[str, ...], data: st.DataObject) -> None:
    choice = data.draw(st.sampled_from(choices))
    around = data.draw(st.sampled_from(["{}", " {}.", "**{}**", '"{}"', "{}\n\nand more", "({})"]))
    assert named_choice(around.format(choice), choices) == choice
