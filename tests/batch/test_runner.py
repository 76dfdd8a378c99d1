"""The order of work, with real worker processes that die, fail and take their time."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from capt_local.batch import supervisor
from capt_local.batch.output import LineWriter
from capt_local.batch.records import record_seed
from capt_local.batch.run import BatchJob, RunProgress, run_job
from capt_local.batch.supervisor import News, WorkerProcess, Workers
from capt_local.decoding.options import GenerateOptions
from capt_local.errors import WorkerFailed
from tests.batch.fake_input import FakeJournal, FakeSource, config, start_worker

CANARY = "zyzzyva-canary"
MARK = {
    "versions": {},
    "bundle": {"id": "fake"},
    "models": {"target": {"sha256": None}},
    "method": "capt",
    "parameters": {"sample": {"seed": 0}},
}


class Bench:
    """Runs prompts through worker processes, and keeps what happened.

    Attributes:
        journal: with the lines.
        news: all of it.
        workers: that were started.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = FakeJournal()
        self.news: list[News] = []
        self.workers: list[WorkerProcess] = []
        self.progress = RunProgress(0)

    def start(self) -> WorkerProcess:
        self.workers.append(start_worker(self.folder))
        return self.workers[-1]

    def run(
        self,
        prompts: Mapping[str, str],
        *,
        parallel: int = 1,
        stop: Callable[[], bool] = lambda: False,
        changed: tuple[str, ...] = (),
        timeout: float = math.inf,
    ) -> bool:
        source: Any = FakeSource(prompts, changed)
        journal: Any = self.journal
        indices = range(len(source.ids))
        job = BatchJob(source, journal, LineWriter(MARK), GenerateOptions(), indices)
        self.progress = RunProgress(len(indices))
        workers = Workers(self.start, timeout=timeout)
        try:
            while workers.hello(0.1) is None:
                assert not stop()
            workers.load(config(parallel))
            whole = run_job(job, workers, self.progress, report=self.news.append, stop=stop)
            if whole:
                workers.finish(lambda: False)
            return whole
        finally:
            workers.kill()

    @property
    def deaths(self) -> list[str]:
        return [news.died for news in self.news if news.died]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    assert all(not is_alive(worker.pid) for worker in made.workers)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def answer(id: str, prompt: str) -> str:
    return f"{' '.join(reversed(prompt.split()))} {record_seed(0, id)}"


@pytest.mark.parametrize("parallel", [1, 3, 8])
def test_every_record_is_answered_once(bench: Bench, parallel: int) -> None:
    prompts = {f"r{number}": f"word {number}" for number in range(20)}
    assert bench.run(prompts, parallel=parallel)
    assert bench.journal.answers == {id: answer(id, text) for id, text in prompts.items()}
    assert len(bench.workers) == 1
    assert (bench.progress.done, bench.progress.failed, bench.progress.answer_tokens) == (20, 0, 20)


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_record_that_kills_two_workers_alone_has_failed(bench: Bench, parallel: int) -> None:
    prompts = {"a": "one", "b": "die SIGABRT", "c": "two", "d": "three", "e": "four"}
    assert bench.run(prompts, parallel=parallel)
    found = bench.journal.answers
    assert found.pop("b") == "worker_died"
    assert found == {id: answer(id, prompts[id]) for id in found}
    assert set(found) == {"a", "c", "d", "e"}
    (failed,) = [line for line in bench.journal.lines if line.record.id == "b"]
    assert failed.error is not None
    assert "twice" in failed.error["message"] and "SIGABRT" in failed.error["message"]
    # In company too, to find out which record it is.
    assert len(bench.workers) == (3 if parallel == 1 else 4)


@pytest.mark.parametrize(
    ("prompt", "cause"),
    [
        ("once die SIGKILL", "memory ran out"),
        ("once die SIGSEGV", "SIGSEGV"),
        ("once exit 7", "exit code 7"),
        (f"once break {CANARY}", "unexpected TypeError at "),
    ],
)
def test_a_worker_that_dies_once_is_replaced(bench: Bench, prompt: str, cause: str) -> None:
    assert bench.run({"a": "one", "b": prompt, "c": "two"})
    found = bench.journal.answers
    assert found["b"] == answer("b", "survived")
    assert [cause in death for death in bench.deaths] == [True]
    assert CANARY not in str(bench.news)


@pytest.mark.slow
def test_workers_that_die_whatever_they_are_asked_end_the_run(bench: Bench) -> None:
    with pytest.raises(WorkerFailed, match="10 times in a row"):
        bench.run({f"r{number}": "die SIGSEGV" for number in range(20)})
    assert list(bench.journal.answers.values()) == ["worker_died"] * 4


def test_a_failed_record_is_a_line_and_the_others_go_on(bench: Bench) -> None:
    prompts = {"a": "refuse", "b": "one", "c": "overflow", "d": "two"}
    assert bench.run(prompts, parallel=2, changed=("d",))
    found = bench.journal.answers
    assert found.pop("b") == answer("b", "one")
    assert found == {"a": "numerical_error", "c": "context_overflow", "d": "input_changed"}
    messages = {line.record.id: line.error["message"] for line in bench.journal.lines if line.error}
    assert "target 2000" in messages["c"]


def test_a_worker_that_hangs_is_ended_and_its_record_fails(bench: Bench) -> None:
    prompts = {"a": "one", "b": "wait 3600", "c": "two", "d": "three"}
    began = time.monotonic()
    assert bench.run(prompts, parallel=2, timeout=1.0)
    found = bench.journal.answers
    assert found.pop("b") == "timed_out"
    assert found == {id: answer(id, prompts[id]) for id in found} and set(found) == {"a", "c", "d"}
    (failed,) = [line for line in bench.journal.lines if line.record.id == "b"]
    assert failed.error is not None and "alone, it reported no progress" in failed.error["message"]
    # Once in company, to find out which record it is, and twice alone.
    assert len(bench.workers) == 4 and time.monotonic() - began < 60


def test_long_work_is_no_hanging(bench: Bench) -> None:
    assert bench.run({"a": "busy 4"}, timeout=2.0)
    assert bench.journal.answers == {"a": answer("a", "busy 4")} and len(bench.workers) == 1


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
        workers.load(config(1))
        workers.put(0, {})
        with pytest.raises(WorkerFailed, match="while it loaded the models"):
            while True:
                workers.poll(0.1)
    finally:
        workers.kill()
