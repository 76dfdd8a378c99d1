"""`score`: what it reads and tells, and errors that name neither the file nor its text."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from tests.cli.conftest import CANARY, Run
from tests.cli.fake_runtime import Script

FIGURES = {"method", "bits_per_byte", "bytes", "tokens", "nats"}
TEXT = {"id": "t", "text": "fever"}
ANSWER = {"id": "c", "prompt": "What is it?", "continuation": "A cold."}
QUESTION = {"id": "q", "prompt": "Is it?", "choices": ["yes", "no"], "answer": "yes"}
WRONG = {"id": "w", "prompt": "Is it?", "choices": ["yes", "no"], "answer": 1}


def written(folder: Path, *items: object) -> str:
    file = folder / f"{CANARY}.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(file)


def test_one_object_holds_the_figures_and_the_accuracy(
    run: Run, script: Script, tmp_path: Path
) -> None:
    file = written(tmp_path, TEXT, ANSWER, QUESTION, WRONG)
    whole = json.loads(run("score", "{models}", file, "--json", "--method", "target").out)
    assert set(whole) == {*FIGURES, "accuracy", "questions"}
    assert (whole["method"], whole["accuracy"], whole["questions"]) == ("target", 0.5, 2)
    # of the questions, the right choice counts
    assert whole["nats"] == 8.0 + 4.0 + 1.0 + 2.0
    assert whole["bytes"] == len("fever" + "A cold." + "yes" + "no")


def test_each_kind_of_item_has_its_line(run: Run, script: Script, tmp_path: Path) -> None:
    file = written(tmp_path, TEXT, ANSWER, QUESTION, WRONG)
    out = tmp_path / "out.jsonl"
    result = run("score", "{models}", file, "-o", str(out))
    assert result.code == 0 and "0.500 of 2" in result.out
    text, answer, question, wrong = map(json.loads, out.read_text().splitlines())
    assert set(text) == {"id", *FIGURES}
    assert set(answer) == {"id", *FIGURES, "greedy"} and answer["greedy"] is True
    assert question["chosen"] == wrong["chosen"] == 0
    assert question["logps"] == [-1.0, -2.0]
    assert (question["correct"], wrong["correct"]) == (True, False)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_what_is_longer_than_the_context_is_told_and_the_rest_goes_on(
    run: Run, script: Script, tmp_path: Path
) -> None:
    long = {**ANSWER, "id": CANARY, "continuation": CANARY * 20}
    file, out = written(tmp_path, TEXT, long, ANSWER), tmp_path / "out.jsonl"
    result = run("score", "{models}", file, "--json", "-o", str(out))
    assert result.code == 6
    whole = json.loads(result.out)
    items = [json.loads(line) for line in out.read_text().splitlines()]
    assert "target 280 tokens, but the context holds 100" in items[1]["error"]
    assert whole["bytes"] == 12 and whole["failed"] == 1
    assert "line 2: The text does not fit: target 280" in result.err
    assert "1 of 3 items could not be scored" in result.err and CANARY not in result.err


def test_an_interrupt_leaves_what_is_done(run: Run, script: Script, tmp_path: Path) -> None:
    file, out = written(tmp_path, {"text": "fever"}, {"text": "cough"}), tmp_path / "out.jsonl"
    script.press_at = 1  # within the second text
    result = run("score", "{models}", file, "--json", "-o", str(out))
    assert result.code == 130
    whole = json.loads(result.out)
    assert (whole["bytes"], whole["interrupted"]) == (5, True)
    assert len(out.read_text().splitlines()) == 1
    script.press_at, script.calls[:] = None, []
    assert run("score", "{models}", file, "-o", str(out)).code == 0
    complete = out.read_bytes()
    script.press_at, script.calls[:] = 1, []
    again = run("score", "{models}", file, "-o", str(out))
    assert again.code == 130 and again.err.count("stays as it was") == 1
    assert out.read_bytes() == complete
    assert result.err.splitlines()[-1] == (
        "error: interrupted after 1 of 2 items; the figures are of these."
    )


def test_errors_name_the_argument_and_the_line(run: Run, script: Script, tmp_path: Path) -> None:
    file = tmp_path / f"{CANARY}.jsonl"
    cut = "line 2: the first character is longer than 1 bytes"
    for text, said in (
        (None, "cannot be read"),
        (f"\n{CANARY}", "line 2: not JSON"),
        (f'{{"text": "ab"}}\n{{"id": "{CANARY}", "text": "\u00e9t\u00e9"}}', cut),
    ):
        if text is not None:
            file.write_text(text, "utf-8")
        result = run("score", "{models}", str(file), "--max-bytes", "1")
        assert result.code == 2 and said in result.err and "(FILE)" in result.err
        assert CANARY not in result.err and not script.calls
