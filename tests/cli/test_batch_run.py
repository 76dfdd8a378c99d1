"""`batch` with real worker processes without models, which die, fail and take their time."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capt_local.batch import supervisor
from capt_local.batch.records import record_seed
from capt_local.batch.supervisor import WorkerProcess, Workers
from capt_local.cli import batch
from capt_local.errors import WorkerFailed
from capt_local.line_file import LineFile
from tests.batch.fake_worker import start_worker
from tests.cli.conftest import CANARY, Result, Run


class Place:
    """A folder with an input; runs batch there. `later` is what it holds once a worker runs."""

    def __init__(self, folder: Path, run: Run) -> None:
        self.folder, self._run = folder, run
        self.output = folder / "out.jsonl"
        self.workers: list[WorkerProcess] = []
        self.later: dict[str, str] | None = None
        self.write(a="one", b="two")

    def start(self) -> WorkerProcess:
        if self.later is not None:
            self.write(**self.later)
        self.workers.append(start_worker(self.folder.parent))
        return self.workers[-1]

    def write(self, **prompts: str) -> None:
        lines = [json.dumps({"id": id, "prompt": text}) for id, text in prompts.items()]
        (self.folder / "in.jsonl").write_text("\n".join(lines) + "\n")

    def batch(self, *more: str, parallel: int = 1, input: str = "in.jsonl") -> Result:
        given = ["batch", str(self.folder / input), "-o", str(self.output), "-t", "1"]
        result = self._run(*given, "--parallel", str(parallel), *more)
        assert CANARY not in result.err + result.out and "Traceback" not in result.err
        return result

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def all(self) -> dict[str, bytes]:
        found = [path for path in self.folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in found}

    def lines(self) -> dict[str, dict[str, Any]]:
        lines = [json.loads(line) for line in self.output.read_bytes().splitlines()]
        assert len({line["id"] for line in lines}) == len(lines)
        return {line["id"]: line for line in lines}

    def codes(self) -> dict[str, str]:
        """The code of each error; `ok` for the answer that belongs to the record."""
        found = {}
        for id, line in self.lines().items():
            found[id] = line["error"]["code"] if line["error"] else "ok"
            if line["response"] is not None:
                seed = line["response"]["body"]["choices"][0]["message"]["content"].split()[-1]
                assert int(seed) == line["provenance"]["seed"] == record_seed(0, id)
        return found


@pytest.fixture
def place(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    folder = tmp_path / "place"
    folder.mkdir()
    made = Place(folder, run)
    monkeypatch.setattr(batch, "start_worker", made.start)
    yield made
    for worker in made.workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker.pid, 0)


@pytest.mark.parametrize("parallel", [1, 8])
def test_every_record_is_answered_once(place: Place, parallel: int) -> None:
    place.write(**{f"r{number}": f"word {number}" for number in range(20)})
    assert place.batch(parallel=parallel).code == 0
    assert place.codes() == {f"r{number}": "ok" for number in range(20)}
    answer = place.lines()["r7"]["response"]["body"]["choices"][0]["message"]["content"]
    assert answer.startswith("7 word ") and len(place.workers) == 1


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_record_that_kills_two_workers_alone_has_failed(place: Place, parallel: int) -> None:
    place.write(a="one", b="die SIGABRT", c="two", d="three", e="four")
    result = place.batch(parallel=parallel)
    assert result.code == 6 and "The worker process died: it ended by SIGABRT" in result.err
    assert place.codes() == {"b": "worker_died", **dict.fromkeys("acde", "ok")}
    assert "twice with this record alone" in place.lines()["b"]["error"]["message"]
    # In company too, to find out which record it is.
    assert len(place.workers) == (3 if parallel == 1 else 4)


@pytest.mark.parametrize(
    ("prompt", "cause"),
    [
        ("once die SIGKILL", "memory ran out"),
        ("once exit 7", "exit code 7"),
        (f"once break {CANARY}", "unexpected TypeError at "),
    ],
)
def test_a_worker_that_dies_once_is_replaced(place: Place, prompt: str, cause: str) -> None:
    place.write(a="one", b=prompt, c="two")
    result = place.batch()
    assert result.code == 0 and result.err.count(cause) == 1
    assert place.codes() == dict.fromkeys("abc", "ok")


@pytest.mark.slow
def test_workers_that_die_whatever_they_are_asked_end_the_run(place: Place) -> None:
    place.write(**{f"r{number}": "die SIGSEGV" for number in range(20)})
    result = place.batch()
    assert result.code == 3 and "10 times in a row" in result.err
    assert list(place.codes().values()) == ["worker_died"] * 4


def test_a_failed_record_is_a_line_and_the_others_go_on(place: Place) -> None:
    place.write(a="refuse", b="one", c="overflow", d="two")
    place.later = {"a": "refuse", "b": "one", "c": "overflow", "d": CANARY}
    assert place.batch(parallel=2).code == 6
    assert place.codes() == {
        "a": "numerical_error", "b": "ok", "c": "context_overflow", "d": "input_changed"
    }  # fmt: skip
    assert "target 2000" in place.lines()["c"]["error"]["message"]


def test_a_worker_that_hangs_is_ended_and_its_record_fails(place: Place) -> None:
    place.write(a="one", b="wait 3600", c="busy 4", d="three")
    result = place.batch("--record-timeout", "3", parallel=2)
    assert result.code == 6 and "it reported no progress for 3 s" in result.err
    assert place.codes() == {"a": "ok", "b": "timed_out", "c": "ok", "d": "ok"}
    assert "alone, it reported no progress" in place.lines()["b"]["error"]["message"]


def test_a_worker_that_hangs_while_it_loads_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import time; from tests.batch.fake_worker import *; "
        "worker.main(lambda *_: time.sleep(3600), lambda: MACHINE)"
    )
    workers = Workers(lambda: WorkerProcess([sys.executable, "-c", code]), timeout=1.0)
    try:
        while workers.hello(0.1) is None:
            pass
        monkeypatch.setattr(supervisor, "LOAD_TIMEOUT", 1.0)  # now: Python itself may take longer
        workers.put(0, {})
        with pytest.raises(WorkerFailed, match="while it loaded the models"):
            while True:
                workers.poll(0.1)
    finally:
        workers.kill()


def test_a_resume_that_is_refused_has_written_nothing(place: Place) -> None:
    place.write(a="one", b="refuse")
    assert place.batch().code == 6
    place.write(a=f"other {CANARY}", b="refuse", c="three")
    before = place.all()
    result = place.batch()
    assert result.code == 2 and "line 1: changed since its line was written" in result.err
    assert place.all() == before
    place.write(a="one", b="corrected")
    assert place.batch().code == 2 and place.batch("--retry-errors").code == 0
    assert place.codes() == {"a": "ok", "b": "ok"}
    with contextlib.closing(LineFile(place.output, "The output")):
        assert "is being written by another run" in place.batch().err


def test_a_run_that_goes_on_elsewhere_says_so(place: Place) -> None:
    assert place.batch("--limit", "1").code == 0
    manifest = place.folder / "out.jsonl.run.json"
    held = json.loads(manifest.read_bytes())
    (entry,) = held["starts"]
    assert (entry["devices"], entry["loaded"]) == (["CPU: a fake one"], {})
    entry["devices"] = ["GPU0: another one"]
    manifest.write_text(json.dumps(held))
    result = place.batch()
    assert result.code == 0 and result.err.count("computes on other devices") == 1
    assert place.codes() == {"a": "ok", "b": "ok"}
    entries = json.loads(manifest.read_bytes())["starts"]
    assert [entry["devices"] for entry in entries] == [["GPU0: another one"], ["CPU: a fake one"]]
    assert [entry["summary"]["done"] for entry in entries] == [1, 1]


def test_a_check_tells_and_writes_nothing(place: Place) -> None:
    before = place.all()
    result = place.batch("--check", "--json")
    assert result.code == 0 and place.all() == before and not place.workers
    assert json.loads(result.out) == {"records": 2, "skipped": 0}
    place.write(a=" ")
    assert "line 1: the prompt is empty" in place.batch("--check").err


def test_an_interrupted_run_says_what_is_left(place: Place) -> None:
    place.write(a="one", c="interrupt", d="wait 60")
    result = place.batch("--json")
    assert result.code == 130 and " left: the same command goes on" in result.err
    assert json.loads(result.out)["left"] > 0


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.run.json", "in.jsonl", "system.txt"])
def test_what_is_written_has_a_place_of_its_own(place: Place, name: str) -> None:
    Path(place.path("system.txt")).write_text("Be brief.\n")
    os.link(place.path("in.jsonl"), place.path("same.jsonl"))
    before = place.all()
    result = place.batch("--system-file", place.path("system.txt"), "--csv", place.path(name))
    assert result.code == 2 and "--csv" in result.err and place.all() == before
    place.output = place.folder / ("same.jsonl" if name == "in.jsonl" else "none/out.jsonl")
    result = place.batch()
    assert result.code == 2 and "-o" in result.err and place.all() == before


def test_an_output_is_no_note(place: Place) -> None:
    (place.folder / "in.jsonl").rename(place.folder / "a.txt")
    for name in ("out.txt", "a.txt"):
        result = place.batch("--csv", place.path(name), input=".")
        assert result.code == 2 and "--csv" in result.err


def test_answers_without_sources_fail_and_a_table_is_written(place: Place) -> None:
    """The worker answers with the words backwards and a seed, which no prompt has."""
    place.write(a="aspirin 81 mg", b="two words")
    result = place.batch("--csv", place.path("table.csv"))
    assert result.code == 0
    table = (place.folder / "table.csv").read_text().splitlines()
    assert table[0] == "id,status,answer" and len(table) == 3 and "mg 81 aspirin" in table[1]
    assert {line["capt"]["sources"]["of"] for line in place.lines().values()} == {"prompt"}
    result = place.batch("--require-sources", "--force-new", "--csv", place.path("table.csv"))
    assert result.code == 6 and set(place.codes().values()) == {"abstained"}
