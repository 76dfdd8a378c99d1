from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from capt_local.errors import UsageError
from capt_local.evaluate.items import Kind, Measure
from capt_local.evaluate.layouts import layout_names, listed
from capt_local.evaluate.metrics import judge, summarise
from capt_local.evaluate.styles import read_style
from capt_local.evaluate.tasks import read_examples, read_task

DATA = Path(__file__).parent.parent / "data" / "tasks"
SECRET = "Mrs Miller"
ROWS = [
    {"nr": 1, "note": {"text": f"{SECRET} has $5 and {{braces}} ${{nr}}."}, "sick": True},
    {"nr": 2, "note": {"text": "All is well."}, "sick": False},
]
PLAIN = """
name = "made-up"
kind = "classification"
file = "rows.jsonl"
instruction = "Is the patient ill?"
choices = ["ill", "well"]

[fields]
id = "nr"
input = "note.text"
reference = "sick"

[labels]
true = "ill"
false = "well"
"""


def folder(tmp_path: Path, toml: str = PLAIN, rows: list[dict[str, object]] | None = None) -> Path:
    (tmp_path / "task.toml").write_text(toml, "utf-8")
    lines = [json.dumps(row) for row in (ROWS if rows is None else rows)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), "utf-8")
    return tmp_path


def refused(place: Path) -> str:
    with pytest.raises(UsageError) as error:
        read_task(place)
    said = str(error.value)
    assert SECRET not in said and "\n" not in said and str(place) not in said
    return said


def test_a_new_task_is_a_short_file(tmp_path: Path) -> None:
    task = read_task(folder(tmp_path))
    assert (task.name, task.kind, task.max_tokens) == ("made-up", Kind.CLASSIFICATION, 32)
    assert [(item.id, item.reference) for item in task.items] == [("1", "ill"), ("2", "well")]
    assert task.items[0].input == f"{SECRET} has $5 and {{braces}} ${{nr}}."
    assert task.items[0].instruction == "Is the patient ill?"


def test_mednli() -> None:
    task = read_task(DATA / "mednli")
    assert (task.name, task.measure, len(task.items)) == ("mednli", Measure.CHOICE, 3)
    assert task.items[1].id == "made-up-2"
    assert task.items[1].input == (
        "Premise: Her temperature was 39.4 °C on arrival.\n\nHypothesis: She had a fever."
    )
    assert [item.reference for item in task.items] == ["contradiction", "entailment", "neutral"]
    examples = read_examples(DATA / "mednli")
    assert examples is not None and examples.items[0].id == "made-up-10"
    style = read_style("few-shot", examples=examples, shots=1)
    assert style.messages(task.items[0], task)[1].content == "entailment"


def test_radqa() -> None:
    task = read_task(DATA / "radqa")
    assert (task.kind, task.measure, len(task.items)) == (Kind.GENERATION, Measure.SPAN, 3)
    assert task.items[0].references == ("a small left effusion", "small left effusion")
    assert task.items[1].reference == task.no_answer == "unanswerable"
    assert (
        task.items[2].input
        == "Report:\nIMPRESSION: Small effusion.\n\nQuestion: Is there any effusion?"
    )
    said = ["Small left effusion.", "Unanswerable", "effusion"]
    outcomes = [judge(task, *pair) for pair in zip(task.items, said, strict=True)]
    assert summarise(task, outcomes) == {
        "exact_match": pytest.approx(2 / 3),
        "token_f1": pytest.approx((1 + 1 + 2 / 3) / 3),
    }


def test_clip() -> None:
    task = read_task(DATA / "clip")
    assert (task.kind, task.measure) == (Kind.GENERATION, Measure.LABELS)
    assert [item.id for item in task.items] == ["9001-0", "9001-1", "9002-0"]
    assert [item.reference for item in task.items] == [
        "none",
        "appointment, lab",
        "patient instructions",
    ]
    own, near = (
        "Your wound is \"clean '' .",
        "Please see Dr. [**Made Up**] and repeat the blood test .",
    )
    assert task.items[0].input == f"Context: {own} {near}\n\nSentence: {own}"
    assert task.items[1].input == f"Context: {own} {near}\n\nSentence: {near}"
    assert task.items[2].input.startswith("Context: Do n't drive for a week .\n")  # another note
    examples = read_examples(DATA / "clip")
    assert examples is not None and [item.id for item in examples.items] == ["9003-0"]
    assert examples.digest != task.digest


def layout(tmp_path: Path, name: str, of: str) -> Path:
    """The made-up files of one layout, read by another."""
    place = tmp_path / name
    shutil.copytree(DATA / of, place)
    (place / "task.toml").write_text(f'layout = "{name}"\n')
    return place


def test_clip_as_seven_questions(tmp_path: Path) -> None:
    task = read_task(layout(tmp_path, "clip-questions", "clip"))
    style = read_style("zero-shot")
    assert set(task.questions) == set(task.choices) and len(task.questions) == 7
    (asked,) = style.question(task.items[1], task, "lab", raw=False)
    assert asked.content.endswith("laboratory tests? Options:\n-Yes\n-No")
    assert asked.content.startswith("Context: Your wound")
    with pytest.raises(UsageError, match="without examples"):
        read_style("few-shot", examples=task, shots=1).check(task)


def test_mednli_in_words(tmp_path: Path) -> None:
    task = read_task(layout(tmp_path, "mednli-words", "mednli"))
    style = read_style("zero-shot")
    impossible = "It's impossible to say"
    assert [item.reference for item in task.items] == ["No", "Yes", impossible]
    said = ["Maybe.", "yes", "Never", "neutral", "It is not possible to tell", "perhaps"]
    read = [style.read(answer, task.items[0], task) for answer in said]
    assert read == [impossible, "Yes", "No", impossible, impossible, None]


def test_neighbours_are_taken_whole_and_in_reach(tmp_path: Path) -> None:
    rows = [{"n": n, "doc": n // 4, "s": f"s{n}", "ok": True} for n in range(8)]
    toml = PLAIN.replace('input = "note.text"\n', "").replace('"nr"', '"n"').replace("sick", "ok")
    toml = toml.replace("[fields]", 'input = "${around}|${s}"\n\n[fields]', 1)
    toml += '\n[around]\ngroup = "doc"\ntext = "s"\nbytes = 6\n'
    task = read_task(folder(tmp_path, toml, rows))
    assert [item.input for item in task.items[:4]] == [
        "s0 s1 s2|s0",
        "s0 s1 s2 s3|s1",
        "s0 s1 s2 s3|s2",
        "s1 s2 s3|s3",
    ]


def test_every_layout_is_tested() -> None:
    assert layout_names() == ["clip", "clip-questions", "mednli", "mednli-words", "radqa"]


def test_keys_of_the_folder_win_over_those_of_the_layout(tmp_path: Path) -> None:
    shutil.copy(DATA / "mednli" / "mli_train_v1.jsonl", tmp_path / "dev.jsonl")
    (tmp_path / "task.toml").write_text(
        'layout = "mednli"\nname = "mednli-dev"\nfile = "dev.jsonl"\nmax_tokens = 5\n'
    )
    task = read_task(tmp_path)
    assert (task.name, task.max_tokens, len(task.items)) == ("mednli-dev", 5, 2)
    assert task.digest != read_task(DATA / "mednli").digest
    with pytest.raises(UsageError, match=r"examples\.file names a file that is not there"):
        read_examples(tmp_path)


def test_tables_with_cells(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text(
        'name = "cells"\nkind = "generation"\nfile = "t.csv"\ninstruction = "About ${the topic}:"\n'
        '[fields]\nid = "no."\ninput = "text"\nreference = "sum"\n'
    )
    (tmp_path / "t.csv").write_bytes(
        '\ufeffno.,text,sum,the topic\r\n1,"a, b\r\nc ""d""",short,gout\r\n'.encode()
    )
    item = read_task(tmp_path).items[0]
    assert (item.id, item.input, item.reference) == ("1", 'a, b\r\nc "d"', "short")
    assert item.instruction == "About gout:"
    assert read_examples(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no.,text,sum,the topic\n1,a,b\n2,a,b,c,d", "line 2: not as many cells"),
        ("no.,text,sum,sum\n1,a,b,c", "two columns have the same name"),
        ('no.,text,sum,the topic\n1,a,"b,c', "line 2: not CSV"),
        ('no.,text,sum,the topic\n1,a,"b"c,d', "line 2: not CSV"),
        ("text,sum,the topic\na,b,c", 'line 2: no "no."'),
        ("no.,text,sum,the topic\n1,,b,c", 'line 2: "input" is empty'),
        ("no.,text,sum,the topic\n1,a,b,c\n1,a,b,c", "line 3: this id stood"),
        ("no.,text,sum,the topic\n", "holds no items"),
    ],
)
def test_tables_that_are_broken(tmp_path: Path, text: str, said: str) -> None:
    test_tables_with_cells(tmp_path)
    (tmp_path / "t.csv").write_text(text)
    assert said in refused(tmp_path)


def test_prose_needs_no_answers(tmp_path: Path) -> None:
    toml = (
        'name = "p"\nkind = "perplexity"\nfile = "rows.jsonl"\n[fields]\nid="nr"\ninput="note.text"'
    )
    task = read_task(folder(tmp_path, toml))
    assert (task.measure, task.items[1].input) == (Measure.BITS, "All is well.")


def test_choices_of_their_own(tmp_path: Path) -> None:
    toml = PLAIN.replace('choices = ["ill", "well"]', "").replace(
        'reference = "sick"', 'reference = "right"\nchoices = "options[].said"'
    )
    rows: list[dict[str, object]] = [
        {**row, "right": "b", "options": [{"said": "a"}, {"said": "b"}]} for row in ROWS
    ]
    task = read_task(folder(tmp_path, toml, rows))
    assert task.items[0].choices == ("a", "b")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "classification"', "", "kind is missing"),
        ('kind = "classification"', 'kind = "x"', "kind is none of the words"),
        ('name = "made-up"', "", "name is missing"),
        ('name = "made-up"', 'name = "a b"', "name must be 1 to 64"),
        ('name = "made-up"', 'name = "m"\nmeasure = "rouge"', "measure must be one of choice"),
        ('name = "made-up"', 'name = "m"\nmax_tokens = 0', "max_tokens must be at least 1"),
        ('name = "made-up"', 'name = "m"\nmax_tokens = "many"', "max_tokens must be a whole"),
        ('name = "made-up"', 'name = "m"\nchoises = ["a"]', "choises is not known"),
        (
            'name = "made-up"',
            'name = "m"\nlayout = "x"',
            "layout must be one of clip",
        ),
        ('name = "made-up"', 'name = "m"\nlists = ["nr"]', 'line 1: "nr": not a list'),
        ("rows.jsonl", "../rows.jsonl", "file must name a file inside the folder"),
        ("rows.jsonl", "/etc/passwd", "file must name a file inside the folder"),
        ("rows.jsonl", "absent.jsonl", "file names a file that is not there"),
        ("rows.jsonl", "task.toml", "format is missing"),
        ('file = "rows.jsonl"', "", "file is missing"),
        ('input = "note.text"', "", "fields.input is missing"),
        ('input = "note.text"', 'input = "note.words"', 'line 1: no "words"'),
        ('input = "note.text"', 'input = "note"', '"note": a value is not a text'),
        ('input = "note.text"', 'input = "note[]"', '"note" is not a list'),
        ('reference = "sick"', "", "fields.reference is missing"),
        ('reference = "sick"', 'reference = "nr"', '"reference" is not one of'),
        ('choices = ["ill", "well"]', "", 'line 1: no "choices"'),
        ('choices = ["ill", "well"]', 'choices = "ill"', "choices must be a list"),
        ("Is the patient ill?", "Is it $nr?", "instruction has a $"),
        ("Is the patient ill?", "Is it ${}?", "instruction has a $"),
        ("Is the patient ill?", "Is it ${age}?", 'line 1: no "age"'),
        ('true = "ill"', "true = 1", "labels must be a text"),
        ("[labels]", "[labels", "is not TOML: see line"),
    ],
)
def test_descriptions_that_are_wrong(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in PLAIN
    assert said in refused(folder(tmp_path, PLAIN.replace(old, new)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ('{"data": 1}', '"data" is not a list'),
        ('{"data": [{"paragraphs": [{"context": "c"}]}]}', 'no "qas"'),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": ["x"]}]}]}',
            "row 1: not a JSON object",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "1", "answers": []}]}]}]}',
            'row 1: no "question"',
        ),
    ],
)
def test_questions_that_are_broken(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "task.toml").write_text('layout = "radqa"')
    (tmp_path / "test.json").write_text(text)
    assert said in refused(tmp_path)


def clip_with(tmp_path: Path, old: str, new: str) -> Path:
    shutil.copytree(DATA / "clip", tmp_path / "clip")
    table = tmp_path / "clip" / "sentence_level.csv"
    text = table.read_text("utf-8")
    assert old in text
    table.write_text(text.replace(old, new), "utf-8")
    return tmp_path / "clip"


@pytest.mark.parametrize("new", ["[__import__('os')", "['Do' + 'x'", "{'Do'", f"['{SECRET}', 1"])
def test_lists_that_are_none_are_never_run(tmp_path: Path, new: str) -> None:
    assert 'line 4: "sentence": not a list' in refused(clip_with(tmp_path, "['Do'", new))


def test_lists_in_json_may_hold_any_character(tmp_path: Path) -> None:
    place = clip_with(tmp_path, "['Do'", r"['\ud83d'")
    assert 'line 4: "sentence": half of a character' in refused(place)
    assert listed(r'["\ud83d\ude00", "a\/b"]') == ["\U0001f600", "a/b"]


def test_a_link_may_not_leave_the_folder(tmp_path: Path) -> None:
    place = tmp_path / "task"
    place.mkdir()
    folder(place)
    (place / "rows.jsonl").rename(tmp_path / "outside.jsonl")
    (place / "rows.jsonl").symlink_to(tmp_path / "outside.jsonl")
    assert "file must name a file inside the folder" in refused(place)
