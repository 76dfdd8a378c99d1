from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.errors import UsageError
from capt_local.evaluate.items import Item, Kind, Measure
from capt_local.evaluate.styles import FewShot, FewShotBy, read_style, style_names
from capt_local.evaluate.tasks import Task, read_task
from capt_local.prompting.messages import Message

DATA = Path(__file__).parent.parent / "data" / "tasks"
SECTION = read_task(DATA / "section.jsonl")
SUMMARY = read_task(DATA / "summary.jsonl")


def task_of(*items: Item, kind: Kind = Kind.CLASSIFICATION) -> Task:
    measure = Measure.CHOICE if kind is Kind.CLASSIFICATION else Measure.ROUGE
    return Task("made-up", kind, items, measure)


def question(id: str, text: str, choices: tuple[str, ...] = ("ill", "well")) -> Item:
    return Item(id, "Ill or well?", text, choices[0], choices)


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "style.toml"
    path.write_text(text, "utf-8")
    return str(path)


def test_the_styles_of_the_package() -> None:
    assert style_names() == [
        "chain-of-thought",
        "few-shot",
        "lettered",
        "self-consistency",
        "zero-shot",
    ]
    for name in style_names():
        assert read_style(name, examples=SECTION).name == name


def test_zero_shot() -> None:
    style = read_style("zero-shot")
    asked = (
        "Name the section of the note.\n\nPatient: Penicillin gives me a rash.\n\n"
        "Reply with one of these and nothing else: FAMILY, ALLERGY, PLAN"
    )
    assert style.messages(SECTION.items[1], SECTION) == [Message("user", asked)]
    assert style.text(SECTION.items[1], SECTION) == asked + "\n\nAnswer:"
    assert style.read("Allergy.", SECTION.items[1], SECTION) == "ALLERGY"
    assert style.messages(SUMMARY.items[0], SUMMARY)[0].content == (
        "Summarise the visit.\n\n" + SUMMARY.items[0].input
    )
    assert style.read("  A cough.\n", SUMMARY.items[0], SUMMARY) == "A cough."
    assert style.read(" \n", SUMMARY.items[0], SUMMARY) is None


@given(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip))
def test_what_people_wrote_is_never_changed_or_filled_in(text: str) -> None:
    """Braces, dollar signs and places in a note stay what they are."""
    for note in (text, f"{{input}} ${{choices}} $$ {text} %s {{{{ x }}}}"):
        task = task_of(question("1", note))
        for name in ("zero-shot", "chain-of-thought", "lettered"):
            assert note in read_style(name).messages(task.items[0], task)[0].content
            assert note in read_style(name).text(task.items[0], task)


def test_few_shot_shows_the_first_examples_as_turns() -> None:
    style = read_style("few-shot", examples=SECTION, shots=2)
    messages = style.messages(SECTION.items[1], SECTION)
    assert [one.role for one in messages] == ["user", "assistant"] * 2 + ["user"]
    # The item itself is the second of the file, so the third is shown in its place.
    assert [one.content for one in messages[1::2]] == ["FAMILY", "PLAN"]
    text = style.text(SECTION.items[1], SECTION)
    assert text.count("\n\nAnswer:") == 3 and text.endswith("\n\nAnswer:")
    assert "\n\nAnswer: FAMILY\n\nName" in text


def test_the_nearest_examples_come_nearest_last() -> None:
    style = read_style("few-shot", examples=SECTION, shots=3, by=FewShotBy.NEAREST)
    messages = style.messages(SECTION.items[1], SECTION)
    assert messages[4].content.find("Latex") > 0
    assert len({one.content for one in messages[::2]}) == 4


def test_neither_the_item_nor_its_input_is_an_example() -> None:
    examples = task_of(
        question("1", "The patient   COUGHS."), question("2", "No cough."), question("9", "Pain.")
    )
    item = question("9", "the patient coughs.")
    for by in FewShotBy:
        shown = FewShot(examples, 2, by).of(item, task_of(item))
        # Another file may use the same id for something else.
        assert {one.input for one in shown} == {"No cough.", "Pain."}
        with pytest.raises(UsageError, match="only 2 are not the question"):
            FewShot(examples, 3, by).of(item, task_of(item))
    same_file = [one.id for one in FewShot(examples, 2).of(examples.items[2], examples)]
    assert same_file == ["1", "2"]


def test_examples_that_cannot_be_shown() -> None:
    with pytest.raises(UsageError, match="name a file"):
        read_style("few-shot")
    with pytest.raises(UsageError, match="has 4"):
        read_style("few-shot", examples=SECTION, shots=5)
    with pytest.raises(UsageError, match="texts without answers"):
        read_style("few-shot", examples=read_task(DATA / "prose.jsonl"))
    with pytest.raises(UsageError, match="for generation, the task is classification"):
        style = read_style("few-shot", examples=SUMMARY, shots=1)
        style.messages(SECTION.items[0], SECTION)
    wordless = task_of(question("1", "?"), question("2", "!"))
    with pytest.raises(UsageError, match="no words"):
        FewShot(wordless, 1, FewShotBy.NEAREST).of(question("3", "a word"), wordless)
    assert read_style("few-shot", shots=0).few_shot is None


def test_chain_of_thought_reads_behind_the_marker() -> None:
    style = read_style("chain-of-thought", examples=SECTION, shots=1)
    item = SECTION.items[1]
    assert style.read("A rash after a drug.\nAnswer: ALLERGY", item, SECTION) == "ALLERGY"
    assert style.read("It is ALLERGY", item, SECTION) is None
    assert style.read("Answer: I cannot say", item, SECTION) is None
    messages = style.messages(item, SECTION)
    assert messages[1].content == "Answer: FAMILY"
    assert 'begins with "Answer:"' in messages[2].content
    assert style.text(item, SECTION).endswith("\n\nLet us think step by step.")
    assert style.max_tokens == 512


def test_letters() -> None:
    style = read_style("lettered", examples=SECTION, shots=1)
    item = SECTION.items[1]
    messages = style.messages(item, SECTION)
    assert "\n\nA. FAMILY\nB. ALLERGY\nC. PLAN\n\n" in messages[2].content
    assert messages[1].content == "A"
    assert style.read("(B)", item, SECTION) == "ALLERGY"
    assert style.read("plan", item, SECTION) == "PLAN"
    assert style.choice_texts(item, SECTION) == ("A", "B", "C")
    many = tuple(f"choice {number}" for number in range(27))
    task = task_of(question("1", "Which?", many))
    with pytest.raises(UsageError, match="letters for 26"):
        style.check(task)


def test_a_style_of_ones_own(tmp_path: Path) -> None:
    style = read_style(
        written(
            tmp_path,
            'name = "own"\nsystem = "Be brief."\nlead = " =>"\n[shots]\ncount = 1\nby = "nearest"\n'
            '[prompt]\nclassification = "${input} costs $$5? ${choices}"\n',
        ),
        examples=SECTION,
    )
    messages = style.messages(SECTION.items[1], SECTION)
    assert messages[0] == Message("system", "Be brief.")
    assert messages[-1].content.endswith("a rash. costs $5? FAMILY, ALLERGY, PLAN")
    assert style.text(SECTION.items[1], SECTION).startswith("Be brief.\n\n")
    assert style.few_shot is not None and style.few_shot.by is FewShotBy.NEAREST
    with pytest.raises(UsageError, match="no prompt for generation"):
        style.messages(SUMMARY.items[0], SUMMARY)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "x"', "prompt needs a text"),
        ('[prompt]\ngeneration = "${input}"', "name is missing"),
        ('name = "a b"\n[prompt]\ngeneration = "${input}"', "name must be"),
        ('name = "x"\n[prompt]\ngeneration = "${note}"', "a place that is not one of"),
        ('name = "x"\n[prompt]\ngeneration = "costs $5"', "a place that is not one of"),
        ('name = "x"\n[prompt]\nguess = "${input}"', "prompt.guess is not known"),
        ('name = "x"\nsample = 3\n[prompt]\ngeneration = "y"', "sample is not known"),
        ('name = "x"\nsamples = 0\n[prompt]\ngeneration = "y"', "samples must be at least 1"),
        (
            'name = "x"\nsamples = 3\ntemperature = 0\n[prompt]\nclassification = "y"',
            "temperature 0 are all the same",
        ),
        ('name = "x"\n[shots]\nby = "chance"\n[prompt]\ngeneration = "y"', "shots.by is none"),
        ("name = 1 2", "not TOML: see line 1"),
        ("name = ", "is not TOML."),
        ("name = '\ud800'", "not UTF-8"),
    ],
)
def test_styles_that_are_broken(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "Mrs Miller.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UsageError) as error:
        read_style(str(path))
    assert said in str(error.value)
    assert "Miller" not in str(error.value) and "\n" not in str(error.value)
