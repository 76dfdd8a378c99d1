"""`batch` with the small trained trio: whole runs, stopped ones, parts of one."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from capt_local.cli.app import run
from tests.cli.conftest import CANARY
from tests.small_trio import SMALL_TRIO

NOTES = [
    "58-year-old woman with dyspnea on exertion.",
    "What are the symptoms of asthma?",
    "Metoprolol 25 mg twice a day.",
    "Chest pain since this morning, no fever.",
    "Assessment: cardiomyopathy. Plan:",
    f"Fever and a cough, {CANARY}.",
]
QUICK = ("-m", str(SMALL_TRIO), "-t", "1", "-n", "6", "-c", "512")
MANY = 120  # records of a run that is stopped in its middle


def written(path: Path, lines: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def notes(path: Path, count: int = len(NOTES)) -> str:
    texts = (NOTES * count)[:count]
    return written(path, [{"id": f"n{i}", "prompt": text} for i, text in enumerate(texts)])


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def untimed(path: Path) -> dict[str, dict[str, Any]]:
    """Lines by their id without what tells times; fails where an id comes twice."""
    found = {}
    for line in results(path):
        del line["timings"], line["provenance"]["time"], line["sha256"]
        if line["response"]:
            del line["response"]["body"]["created"]
        assert found.setdefault(line["id"], line) is line
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed run, four at once."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = [notes(folder / "in.jsonl"), "-o", str(folder / "out.jsonl")]
    assert run(["batch", *arguments, *QUICK, "--parallel", "4"]) == 0
    return folder / "out.jsonl"


def test_a_run_has_a_line_for_each_record(whole: Path) -> None:
    found = untimed(whole)
    assert sorted(found) == [f"n{i}" for i in range(len(NOTES))]
    line = found["n1"]
    body = line["response"]["body"]
    assert body["object"] == "chat.completion" and body["choices"][0]["logprobs"] is None
    assert 0 < body["usage"]["completion_tokens"] <= 6
    assert line["error"] is None and line["custom_id"] == "n1"
    assert line["provenance"]["ai_label"] == "AIRPT"
    assert stat.S_IMODE(whole.stat().st_mode) == 0o600
    assert CANARY not in whole.with_name("out.jsonl.run.json").read_text()
    assert sorted(path.name for path in whole.parent.iterdir()) == [
        "in.jsonl", "out.jsonl", "out.jsonl.run.json",
    ]  # fmt: skip


def test_a_finished_run_is_done(whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = whole.read_bytes()
    arguments = [str(whole.with_name("in.jsonl")), "-o", str(whole), *QUICK]
    assert run(["batch", *arguments, "--json"]) == 0
    out, err = capfd.readouterr()
    summary = json.loads(out)
    assert (summary["done"], summary["already_done"], summary["left"]) == (0, len(NOTES), 0)
    assert CANARY not in err
    assert whole.read_bytes() == before
    assert run(["batch", *arguments, "--temp", "0.5"]) == 2
    assert "parameters.sample.temperature (0.0, now 0.5)" in capfd.readouterr().err


def test_one_at_a_time_gives_the_same_answers(
    whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = str(whole.with_name("in.jsonl"))
    one = tmp_path / "one.jsonl"
    assert run(["batch", place, "-o", str(one), *QUICK, "--parallel", "1", "--limit", "3"]) == 0
    assert "3 records are left: the same command goes on with them." in capfd.readouterr().err
    lines, there = untimed(one), untimed(whole)
    assert len(lines) == 3
    for id, line in lines.items():
        assert line["response"]["body"]["choices"] == there[id]["response"]["body"]["choices"]


@pytest.mark.parametrize("more", [[], ["--raw", "--alpha", "0.5"]], ids=["chat", "raw"])
def test_candidates_of_several_records_are_as_one_record_at_a_time(
    tmp_path: Path, more: list[str]
) -> None:
    place, together, alone = notes(tmp_path / "in.jsonl", 4), tmp_path / "a", tmp_path / "b"
    several = ["--best-of", "3", "--temp", "1", "--parallel", "4", "--logprobs"]
    arguments = ["batch", place, *QUICK, *several, *more]
    assert run([*arguments, "-o", str(together)]) == 0
    for _ in range(4):
        assert run([*arguments, "-o", str(alone), "--limit", "1"]) == 0
    assert untimed(together) == untimed(alone)  # every bit of every number
    assert all(len(line["capt"]["best_of"]["candidates"]) == 3 for line in results(together))


def test_failed_records_are_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = written(
        tmp_path / "in.jsonl",
        [
            {"id": "long", "prompt": f"{CANARY} " * 900},
            {"id": "short", "prompt": NOTES[0]},
            {"id": "turns", "messages": [{"role": "user", "content": CANARY}]},
        ],
    )
    output = tmp_path / "out.jsonl"
    arguments = ["batch", place, "-o", str(output), *QUICK, "--logprobs"]
    assert run([*arguments, "--json"]) == 6
    long, short, turns = sorted(
        results(output), key=lambda line: line["provenance"]["record"]["line"]
    )
    assert long["error"]["code"] == "context_overflow" and long["response"] is None
    assert "target" in long["error"]["message"] and CANARY not in json.dumps(long)
    content = short["response"]["body"]["choices"][0]["logprobs"]["content"]
    assert len(content) == short["response"]["body"]["usage"]["completion_tokens"] > 0
    assert turns["custom_id"] == "turns" and turns["error"] is None
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert (told["done"], told["failed"]) == (2, {"context_overflow": 1})
    assert "1 failed (context_overflow 1)" in err
    assert "too long for the context: input line 1. Nothing is cut" in err
    assert run([*arguments, "--retry-errors"]) == 6
    assert sorted(line["id"] for line in results(output)) == ["long", "short", "turns"]
    assert CANARY not in capfd.readouterr().err


def test_an_answer_that_breaks_off_is_not_of_its_schema(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"a": {"enum": ["yes", "no"]}}, '
                      '"required": ["a"], "additionalProperties": false}')  # fmt: skip
    place = written(tmp_path / "in.jsonl", [{"id": "a", "prompt": "Yes or no?"}])
    arguments = ["batch", place, *QUICK, "--json-schema", str(schema)]
    assert run([*arguments, "-o", str(tmp_path / "whole.jsonl"), "-n", "30"]) == 0
    (line,) = results(tmp_path / "whole.jsonl")
    said = line["response"]["body"]["choices"][0]["message"]["content"]
    assert json.loads(said)["a"] in ("yes", "no") and line["error"] is None
    assert run([*arguments, "-o", str(tmp_path / "cut.jsonl"), "-n", "2"]) == 6
    (line,) = results(tmp_path / "cut.jsonl")
    assert line["error"]["code"] == "invalid_structure"
    assert line["response"]["body"]["choices"][0]["finish_reason"] == "length"


def test_an_answer_of_two_cases_of_a_oneof_is_not_of_its_schema(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(f'{{"oneOf": [{{"const": "{CANARY}"}}, {{"enum": ["{CANARY}"]}}]}}')
    place = written(tmp_path / "in.jsonl", [{"id": "a", "prompt": "Yes or no?"}])
    form = ["--json-schema", str(schema), "-n", "30"]
    assert run(["batch", place, *QUICK, *form, "-o", str(tmp_path / "out.jsonl")]) == 6
    (line,) = results(tmp_path / "out.jsonl")
    assert line["error"]["code"] == "invalid_structure" and CANARY not in str(line["error"])
    assert line["response"]["body"]["choices"][0]["finish_reason"] == "stop"
    capfd.readouterr()
    assert run(["generate", "-p", "Yes or no?", *QUICK, *form]) == 6
    out, err = capfd.readouterr()
    assert json.loads(out) == CANARY and "no instance of its schema, so it is not valid" in err


def started(
    arguments: Sequence[str], environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A batch run as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "capt_local", "batch", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )


def wait_for_lines(process: subprocess.Popen[bytes], output: Path, count: int) -> None:
    until = time.monotonic() + 120
    while not output.exists() or output.read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)


def worker_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    (child,) = psutil.Process(process.pid).children()
    return child


@pytest.fixture(scope="module")
def long_whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed run of many records, two at once."""
    folder = tmp_path_factory.mktemp("long")
    arguments = [notes(folder / "in.jsonl", MANY), "-o", str(folder / "out.jsonl")]
    assert run(["batch", *arguments, *QUICK, "--parallel", "2"]) == 0
    return folder / "out.jsonl"


@pytest.fixture
def long_run(long_whole: Path, tmp_path: Path) -> list[str]:
    """Arguments of the same run with another output."""
    place = str(long_whole.with_name("in.jsonl"))
    return [place, "-o", str(tmp_path / "out.jsonl"), *QUICK, "--parallel", "2"]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_the_run_and_it_goes_on(
    long_whole: Path, long_run: list[str], number: int, code: int
) -> None:
    output = Path(long_run[2])
    process = started(long_run)
    wait_for_lines(process, output, 3)
    worker = worker_of(process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"the same command goes on with them." in err
    assert b"Traceback" not in err and CANARY.encode() not in err
    assert not worker.is_running()
    assert 3 <= len(untimed(output)) < MANY
    assert run(["batch", *long_run]) == 0
    assert untimed(output) == untimed(long_whole)


@pytest.mark.parametrize("victim", ["run", pytest.param("worker", marks=pytest.mark.slow)])
def test_a_kill_leaves_no_worker_and_loses_nothing(
    long_whole: Path, long_run: list[str], victim: str
) -> None:
    output = Path(long_run[2])
    process = started(long_run)
    wait_for_lines(process, output, 3)
    worker = worker_of(process)
    (process if victim == "run" else worker).kill()
    _, err = process.communicate(timeout=120)
    psutil.wait_procs([worker], timeout=30)
    assert not worker.is_running()
    if victim == "run":
        assert run(["batch", *long_run]) == 0
    else:  # it is replaced
        assert process.returncode == 0
        assert b"The worker process died: it was killed (SIGKILL)" in err
    assert untimed(output) == untimed(long_whole)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ("in.jsonl", 2, "There is no output. Name a file with -o."),
        ("bad.jsonl -o out", 2, "line 2: not JSON"),
        ("in.jsonl -o out --template template", 2, "lines 1, 2: there is no field"),
        ("in.jsonl -o out --parallel 0", 2, "--parallel takes a number"),
        ("in.jsonl -o out --top-logprobs 2", 2, "goes with --logprobs"),
        ("in.jsonl -o out --target in.jsonl", 3, ""),
        ("in.jsonl -o out -m ./none", 3, "There is no bundle"),
        ("in.jsonl -o out --parallel 255 -c 1000000", 4, "Not enough memory"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: str, code: int, told: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    notes(tmp_path / "in.jsonl", 2)
    (tmp_path / "bad.jsonl").write_text(f'{{"id": "a", "prompt": "x"}}\n{CANARY}\n')
    (tmp_path / "template").write_text("{{ unknown }}")
    before = set(tmp_path.iterdir())
    assert run(["batch", *arguments.split(), "-t", "1"]) == code
    err = capfd.readouterr().err
    assert told in err
    # A worker that cannot load its models leaves an output without lines, to be resumed.
    assert code == 4 or set(tmp_path.iterdir()) == before
    assert err.count("error: ") == 1 and "Traceback" not in err and CANARY not in err
