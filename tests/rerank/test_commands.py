"""--best-of, --scorer and --adapter from the command line, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capt_local.cli.app import run
from capt_local.llama.gguf_header import file_digests
from capt_local.report.views import visible
from tests.rerank.tiny_scorer import tiny_scorer
from tests.tiny_models import tiny_adapter, tiny_gguf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, role in enumerate(("target", "expert", "base"), 1):
        tiny_gguf(tmp_path / f"{role}.gguf", seed=seed)
    tokenizer = file_digests(tmp_path / "target.gguf").tokenizer
    tiny_scorer(tmp_path / "scorer", target_tokenizer=tokenizer)
    tiny_adapter(tmp_path / "one.gguf", seed=4)
    return tmp_path


def trio(folder: Path) -> list[str]:
    files = [(f"--{role}", str(folder / f"{role}.gguf")) for role in ("target", "expert", "base")]
    return [*(part for pair in files for part in pair), "-t", "1", "-n", "4", "--temp", "1"]


def test_all_candidates_stand_in_the_json(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = [*trio(folder), "-p", "chest pain", "--seed", "5"]
    shown = []
    for scorer in ([], ["--scorer", str(folder / "scorer")]):
        assert run(["generate", *flags, "--best-of", "3", *scorer, "--json"]) == 0
        made = json.loads(capfd.readouterr().out)
        best = made["capt"]["best_of"]
        assert best["ranked_by"] == ("scorer" if scorer else "mean-logprob")
        scores = [one["score"] for one in best["candidates"]]
        assert scores == sorted(scores, reverse=True)
        assert {one["seed"] for one in best["candidates"]} == {5, 6, 7}
        assert ["text" in one for one in best["candidates"]] == [False, True, True]
        assert made["provenance"]["parameters"]["sample"]["seed"] == best["candidates"][0]["seed"]
        shown.append(made["choices"][0]["message"]["content"])
    assert run(["generate", *flags, "--best-of", "3", *scorer]) == 0
    told = capfd.readouterr().out.strip()
    assert visible(shown[1]).strip() == told


def test_each_record_of_a_batch_gets_its_best(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    records = folder / "in.jsonl"
    lines = [{"id": i, "prompt": "chest pain"} for i in "ab"]
    lines[1]["adapter_scales"] = {"expert": [0.5]}  # type: ignore[assignment]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = [*trio(folder), "--adapter", f"expert:{folder / 'one.gguf'}", "--best-of", "2"]
    out = folder / "out.jsonl"
    done = run(["batch", str(records), "-o", str(out), *flags, "--scorer", str(folder / "scorer")])
    assert done == 0, capfd.readouterr().err
    for line in map(json.loads, out.read_text().splitlines()):
        best = line["capt"]["best_of"]
        assert best["ranked_by"] == "scorer" and len(best["candidates"]) == 2


def test_an_answer_with_sources_is_preferred(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Eight doses of one digit, drawn nearly at random; the note has the odd ones."""
    note, schema, records = folder / "note.txt", folder / "form.json", folder / "in.jsonl"
    note.write_text("Doses 1 3 5 7 9")
    digit = {"type": "integer", "minimum": 0, "maximum": 9}
    form = {"type": "object", "properties": {"dose": digit}, "required": ["dose"]}
    schema.write_text(json.dumps({**form, "additionalProperties": False}))
    records.write_text(json.dumps({"id": "a", "prompt": "Doses 1 3 5 7 9"}) + "\n")
    flags = [*trio(folder), "-n", "40", "--json-schema", str(schema), "--best-of", "8"]

    def doses(answer: dict[str, Any]) -> list[int]:
        best = answer["choices"][0]["message"]["content"]
        candidates = answer["capt"]["best_of"]["candidates"]
        found = [json.loads(one.get("text", best))["dose"] for one in candidates]
        if "unsupported" in candidates[0]:
            assert [one["unsupported"] for one in candidates] == [1 - dose % 2 for dose in found]
        return found

    assert run(["generate", *flags, "-f", str(note), "--json"]) == 0
    plain = doses(json.loads(capfd.readouterr().out))
    assert run(["generate", *flags, "-f", str(note), "--json", "--require-sources"]) == 0
    chosen = doses(json.loads(capfd.readouterr().out))
    assert sorted(chosen) == sorted(plain) and plain[0] % 2 == 0
    assert chosen[0] == next(dose for dose in plain if dose % 2)
    out = folder / "out.jsonl"
    assert run(["batch", str(records), "-o", str(out), *flags, "--require-sources"]) == 0
    line = json.loads(out.read_text())
    assert doses({"capt": line["capt"], **line["response"]["body"]})[0] % 2


@pytest.mark.parametrize("choice", ["likelihood", "free"])
def test_eval_puts_the_best_beside_each_method(
    folder: Path, capfd: pytest.CaptureFixture[str], choice: str
) -> None:
    task = folder / "task.jsonl"
    line = {"task": "so", "kind": "classification", "instruction": "Is it so?", "licence": "CC0"}
    line |= {"reference": "yes", "choices": ["yes", "no"]}
    rows = [line | {"id": str(n), "input": f"chest pain {n}"} for n in range(4)]
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [*trio(folder)[:6], "-t", "1", "-n", "3", "--choice", choice, "--json"]
    flags += ["--task", str(task), "--best-of", "3", "--scorer", str(folder / "scorer")]
    assert run(["eval", *flags]) == 0
    made = json.loads(capfd.readouterr().out)
    methods = made["tasks"]["so"]["methods"]
    assert list(methods) == ["target", "capt", "target+best", "capt+best"]
    assert methods["capt+best"]["counts"]["done"] == 4
    assert methods["capt+best"]["intervals"]["accuracy"]["items"] == 4
    assert made["settings"]["best_of"] == 3 and len(made["settings"]["scorer"]) == 64


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--best-of", "0"], 2),
        (["--best-of", "2", "--temp", "0"], 2),
        (["--scorer", "x"], 2),
        (["--best-of", "2", "--scorer", "none"], 3),
        (["--best-of", "2", "--scorer", "scorer"], 3),
        (["--best-of", "2", "--scorer", "{}/base.gguf"], 3),
        (["--adapter", "expert:{}/one.gguf=nan"], 2),
        (["--adapter", "helper:{}/one.gguf"], 2),
        (["--adapter", "expert:{}/other.gguf"], 3),
        (["--adapter", "expert:{}/none.gguf"], 3),
    ],
)
def test_what_cannot_be_is_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], flags: list[str], code: int
) -> None:
    tiny_adapter(folder / "other.gguf", seed=3, architecture="gemma3")
    given = [flag.replace("{}", str(folder)) for flag in flags]
    assert run(["generate", *trio(folder), "-p", "chest pain", *given]) == code
    lines = capfd.readouterr().err.strip().splitlines()
    assert "Traceback" not in " ".join(lines)
    assert len([line for line in lines if "error" in line.lower()]) == 1
