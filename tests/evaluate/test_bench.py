"""Prompts to measure on, turns, ratios and equal answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capt_local.errors import ContextOverflow, UsageError
from capt_local.evaluate.bench import (
    AnswerTime,
    BenchPrompt,
    BenchResult,
    read_prompts,
    run_interleaved,
)
from capt_local.prompting.messages import Message

ITEM = {
    "id": "1",
    "task": "summary",
    "kind": "generation",
    "instruction": "Summarise.",
    "input": "She coughs.",
    "reference": "Cough.",
}


def test_items_of_a_task_are_asked_as_eval_asks_them(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({**ITEM, "id": id}) + "\n" for id in "12"))
    asked = read_prompts(path, "The file", None)
    assert asked == [BenchPrompt((Message("user", "Summarise.\n\nShe coughs."),))] * 2
    assert len(read_prompts(path, "The file", 1)) == 1
    line = {"id": "p", "task": "prose", "kind": "perplexity", "text": "The wound is dry."}
    path.write_text(json.dumps(line))
    assert read_prompts(path, "The file", None) == [BenchPrompt("The wound is dry.", raw=True)]


def timing(tokens: list[int], rate: float, **more: object) -> AnswerTime:
    return AnswerTime(10, 0.5, tuple(tokens), (len(tokens) - 1) / rate, **more)  # type: ignore[arg-type]


def test_every_mode_answers_every_prompt_that_fits_and_the_first_one_twice() -> None:
    asked: list[tuple[str, str]] = []

    def mode(name: str):  # type: ignore[no-untyped-def]
        def answer(prompt: BenchPrompt) -> AnswerTime:
            asked.append((name, str(prompt.text)))
            if prompt.text == "long" and name == "b":
                raise ContextOverflow({"target": 9}, 4)
            return timing([1, 2], 1.0)

        return answer

    prompts = [BenchPrompt(text) for text in ("one", "long", "two")]
    found = run_interleaved({"a": mode("a"), "b": mode("b")}, prompts)
    assert asked[:4] == [("a", "one"), ("b", "one")] * 2
    assert asked[-2:] == [("a", "two"), ("b", "two")]
    assert found.too_long == [2] and [each.text for each in found.prompts] == ["one", "two"]
    assert {name: len(each) for name, each in found.times.items()} == {"a": 2, "b": 2}
    with pytest.raises(UsageError, match="No prompt fits"):
        run_interleaved({"b": mode("b")}, prompts[1:2])


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
        parallel=2,
        many_seconds=(1.0,),
        many_tokens=tuple(map(tuple, answers)),
    )
    ratios = {name: ratio["median"] for name, ratio in found.ratios().items()}
    assert ratios == pytest.approx(
        {
            "target/llama": 20 / 22,
            "exact-steps/target": 0.5,
            "auto/target": 0.75,
            "auto/exact-steps": 1.5,
            "many-2/exact-steps": 3.0,  # two prompts of 0.5 s, and 1 s for each answer
        }
    )
    figures = found.figures()
    assert figures["auto"]["generate_tokens_per_s"] == pytest.approx(15 / (10 / 15 + 5 / 7.5))
    assert figures["auto"]["prefill_tokens_per_s"] == pytest.approx(20.0)
    assert figures["auto"]["positions_per_token"] == {"target": 2.0}
    assert figures["auto"]["outside_decode_ms_per_token"] == pytest.approx(10.0)
    same = found.same_answers()
    assert same["auto"] == ("exact-steps", 1, 2) and same["many-2"] == ("exact-steps", 2, 2)
    assert same["llama"] == ("target", 2, 2)
