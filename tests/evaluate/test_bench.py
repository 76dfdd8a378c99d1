"""Prompts to measure on, turns, ratios and equal answers."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest

from capt_local.errors import ContextOverflow, UsageError
from capt_local.evaluate.bench import (
    BenchPrompt,
    BenchResult,
    ManyTiming,
    Timing,
    read_prompts,
    standard_text,
    take_turns,
)
from capt_local.prompting.messages import Message

NOTES = (resources.files("capt_local") / "data" / "bench_notes.txt").read_bytes().strip()
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
    asked = read_prompts(path, "The file")
    assert asked == [BenchPrompt((Message("user", f"Summarise.\n\n{CANARY} coughs."),))] * 2
    (raw,) = read_prompts(path, "The file", limit=1, raw=True)
    assert raw == BenchPrompt(f"Summarise.\n\n{CANARY} coughs.\n\nAnswer:", raw=True)
    (cut,) = read_prompts(path, "The file", limit=1, size=7, raw=True)
    assert isinstance(cut.text, str) and cut.text.startswith("Summarise.\n\nPATIENT\n")


def test_prose_is_a_prompt_itself(tmp_path: Path) -> None:
    line = {"id": "p", "task": "prose", "kind": "perplexity", "text": "The wound is dry."}
    assert read_prompts(file(tmp_path, line), "The file") == [BenchPrompt("The wound is dry.")]


def test_lines_with_a_prompt_or_a_text(tmp_path: Path) -> None:
    path = file(tmp_path, {"prompt": "one"}, {"text": "two"}, {"prompt": "three"})
    assert [each.text for each in read_prompts(path, "The file", limit=2)] == ["one", "two"]


def test_a_text_file_is_one_prompt(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("one\ntwo\n")
    assert read_prompts(path, "The file", raw=True) == [BenchPrompt("one\ntwo\n", raw=True)]


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
        read_prompts(file(tmp_path, {"prompt": "x"}, line), "The file")
    assert CANARY not in str(error.value)


def test_a_wrong_item_of_a_task_is_told_as_eval_tells_it(tmp_path: Path) -> None:
    path = file(tmp_path, ITEM, {**ITEM, "id": "2", "reference": ""})
    with pytest.raises(UsageError, match='line 2: "reference" is empty'):
        read_prompts(path, "The file")


@pytest.mark.parametrize("data", [b"", b"\n\n"])
def test_an_empty_file_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="holds no prompt"):
        read_prompts(path, "The file")


def test_the_invented_text_has_the_length_that_is_asked_for() -> None:
    def count(text: bytes) -> int:
        return len(text) // 4

    text = standard_text(count, 512)
    assert count(text.encode()) == 512 and NOTES.startswith(text.encode())
    with pytest.raises(UsageError, match="--prompt-tokens"):
        standard_text(count, 10_000)
    with pytest.raises(UsageError, match="too short"):
        standard_text(lambda text: len(text) + 5, 5)


def test_the_invented_notes_hardly_repeat_themselves() -> None:
    # Drafts that are looked up in the text would look better than they are.
    words = NOTES.split()
    runs = [tuple(words[i : i + 6]) for i in range(len(words) - 5)]
    assert len(set(runs)) == len(runs)


def timing(tokens: list[int], rate: float, **more: object) -> Timing:
    return Timing(10, 0.5, tuple(tokens), (len(tokens) - 1) / rate, **more)  # type: ignore[arg-type]


def test_every_mode_answers_every_prompt_that_fits_and_the_first_one_twice() -> None:
    asked: list[tuple[str, str]] = []

    def mode(name: str):  # type: ignore[no-untyped-def]
        def answer(prompt: BenchPrompt) -> Timing:
            asked.append((name, str(prompt.text)))
            if prompt.text == "long" and name == "b":
                raise ContextOverflow({"target": 9}, 4)
            return timing([1, 2], 1.0)

        return answer

    prompts = [BenchPrompt(text) for text in ("one", "long", "two")]
    found = take_turns({"a": mode("a"), "b": mode("b")}, prompts)
    assert asked[:4] == [("a", "one"), ("b", "one")] * 2
    assert asked[-2:] == [("a", "two"), ("b", "two")]
    assert found.too_long == [2] and [each.text for each in found.prompts] == ["one", "two"]
    assert {name: len(each) for name, each in found.timings.items()} == {"a": 2, "b": 2}
    with pytest.raises(UsageError, match="No prompt fits"):
        take_turns({"b": mode("b")}, prompts[1:2])


def test_ratios_are_taken_prompt_by_prompt() -> None:
    answers = [[1] * 11, [1] * 6]
    found = BenchResult(
        {
            "target": [timing(answers[0], 20.0), timing(answers[1], 10.0)],
            "exact-steps": [timing(answers[0], 10.0), timing(answers[1], 5.0)],
            "auto": [
                timing(answers[0], 15.0, outside=0.1, decoded={"target": 20}),
                timing([1, 1, 2, 1, 1, 1], 7.5, outside=0.05, decoded={"target": 10}),
            ],
            "llama": [timing(answers[0], 22.0), timing(answers[1], 11.0)],
        },
        [BenchPrompt("x"), BenchPrompt("y")],
        many=ManyTiming(2, (1.0,), (2.5,), tuple(map(tuple, answers))),
    )
    ratios = {name: ratio.median for name, ratio in found.ratios().items()}
    assert ratios == pytest.approx(
        {
            "exact-steps/target": 0.5,
            "auto/target": 0.75,
            "auto/exact-steps": 1.5,
            "llama/target": 1.1,
            "many-2/exact-steps": 2.5,
        }
    )
    assert found.rate("auto") == pytest.approx(15 / (10 / 15 + 5 / 7.5))
    assert found.prefill("auto") == pytest.approx(20.0)
    assert found.decoded("auto") == {"target": 2.0}
    assert found.outside_ms("auto") == pytest.approx(10.0)
    same = found.same()
    assert same["auto"].differences == ((2, 2),) and same["auto"].same == 1
    assert same["llama"].reference == "target" and same["many-2"].same == 2
    json.dumps(found.as_object())
