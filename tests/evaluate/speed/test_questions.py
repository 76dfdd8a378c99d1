"""What is measured on: tasks as `eval` asks them, prompts, texts, and invented notes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capt_local.errors import UsageError
from capt_local.evaluate.speed.questions import (
    Question,
    notes_text,
    read_questions,
    standard_text,
)
from capt_local.prompt.messages import Message

CANARY = "PATIENT-CANARY"
ITEM = {
    "id": "1",
    "task": "summary",
    "kind": "generation",
    "instruction": "Summarise.",
    "input": f"{CANARY} coughs.",
    "reference": "Cough.",
}


def file(folder: Path, *lines: object, name: str = "in.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return path


def test_items_of_a_task_are_asked_as_eval_asks_them(tmp_path: Path) -> None:
    path = file(tmp_path, ITEM, {**ITEM, "id": "2"})
    asked = read_questions(path, "The file")
    assert asked == [Question((Message("user", f"Summarise.\n\n{CANARY} coughs."),))] * 2
    (raw,) = read_questions(path, "The file", limit=1, raw=True)
    assert raw == Question(f"Summarise.\n\n{CANARY} coughs.\n\nAnswer:", raw=True)
    (cut,) = read_questions(path, "The file", limit=1, size=7, raw=True)
    assert isinstance(cut.asked, str) and cut.asked.startswith("Summarise.\n\nPATIENT\n")


def test_prose_is_a_prompt_itself(tmp_path: Path) -> None:
    line = {"id": "p", "task": "prose", "kind": "perplexity", "text": "The wound is dry."}
    assert read_questions(file(tmp_path, line), "The file") == [Question("The wound is dry.")]


def test_lines_with_a_prompt_or_a_text(tmp_path: Path) -> None:
    path = file(tmp_path, {"prompt": "one"}, {"text": "two"}, {"prompt": "three"})
    assert [q.asked for q in read_questions(path, "The file", limit=2)] == ["one", "two"]


def test_a_text_file_is_one_prompt(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("one\ntwo\n")
    assert read_questions(path, "The file", raw=True) == [Question("one\ntwo\n", raw=True)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"prompt": CANARY, "text": "x"}, "line 2: both"),
        ({"prompt": ""}, "line 2: the text is empty"),
        ({"prompt": [CANARY]}, "line 2"),
        ({"note": CANARY}, "line 2: no"),
        ([CANARY], "line 2: not a JSON object"),
    ],
)
def test_a_wrong_line_is_told_by_its_number(line: object, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=problem) as error:
        read_questions(file(tmp_path, {"prompt": "x"}, line), "The file")
    assert CANARY not in str(error.value)


def test_a_wrong_item_of_a_task_is_told_as_eval_tells_it(tmp_path: Path) -> None:
    path = file(tmp_path, ITEM, {**ITEM, "id": "2", "reference": ""})
    with pytest.raises(UsageError, match='line 2: "reference" is empty'):
        read_questions(path, "The file")


@pytest.mark.parametrize("data", [b"", b"\n\n"])
def test_an_empty_file_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="holds no prompt"):
        read_questions(path, "The file")


def test_the_invented_text_has_the_length_that_is_asked_for() -> None:
    def count(text: bytes) -> int:
        return len(text) // 4

    text = standard_text(count, 512)
    assert count(text.encode()) == 512 and notes_text().startswith(text.encode())
    with pytest.raises(UsageError, match="--prompt-tokens"):
        standard_text(count, 10_000)
    with pytest.raises(UsageError, match="too short"):
        standard_text(lambda text: len(text) + 5, 5)


def test_the_invented_notes_hardly_repeat_themselves() -> None:
    # Drafts that are looked up in the text would look better than they are.
    words = notes_text().split()
    runs = [tuple(words[i : i + 6]) for i in range(len(words) - 5)]
    assert len(set(runs)) == len(runs)
