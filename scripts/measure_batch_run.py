"""What a batch run costs besides the models: input, worker process, pipe, journal.

    python -m scripts.measure_batch_run [--records N] [--bytes N] [--parallel N] [--folder DIR]

Runs an input of invented text through a worker that answers at once, and through the journal onto
the disk of DIR (default: the one of temporary files). Prints milliseconds a record: all of it; the
part in the journal (one write and one fsync for the lines that are finished at the same time; with
`--parallel 1` few are), and what a plain write and fsync of one line takes on that disk; the rest;
and the processor's time in the run's own process. In a real run the worker goes on computing while
the run waits for the disk.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

from capt_local.batch import worker
from capt_local.batch.checking import check_input
from capt_local.batch.crew import Crew
from capt_local.batch.fingerprint import Fingerprint
from capt_local.batch.inputs import InputFormat
from capt_local.batch.journal import Journal
from capt_local.batch.opening import Opening
from capt_local.batch.output import Origin, OutputLine
from capt_local.batch.packing import packed
from capt_local.batch.process import WorkerProcess
from capt_local.batch.progress import Progress
from capt_local.batch.runner import Job, Runner
from capt_local.bundle import store
from capt_local.decode.many.asks import Answered, Ask
from capt_local.decode.options import GenerateOptions
from capt_local.decode.step import FinishReason
from scripts.measure_batch_input import write

_ANSWER = b"The patient has a mild cough since three days and denies chest pain. " * 20
_PLAIN = 200


class Instant:
    """A runtime that answers at once."""

    notices = ()
    models: dict[str, Any] = {}  # noqa: RUF012
    bundle = SimpleNamespace(id="instant")

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to free."""

    def generate_many(
        self, asks: Iterable[Ask], *, parallel: int, cancel: Callable[[], bool]
    ) -> Iterator[Answered]:
        """The same answer to each."""
        for index, _ in enumerate(asks):
            made: Any = SimpleNamespace(
                text=_ANSWER,
                finish=FinishReason.STOP,
                thoughts=b"",
                structured=None,
                prompt_tokens={"target": 200, "expert": 220, "base": 220},
                context_limit=4096,
                weights=(((1.0, 0.5, 0.5), 1.0),),
                prompt_seconds=0.1,
                generate_seconds=0.1,
                notices=(),
                tally=None,
            )
            yield Answered(index, made, (), None)


class Timed:
    """A journal, and the time that is spent in it.

    Attributes:
        seconds: of all lines.
        writes: that they took.
    """

    def __init__(self, journal: Journal) -> None:
        """Of an open journal."""
        self._journal = journal
        self.seconds, self.writes = 0.0, 0

    def append(self, *lines: OutputLine) -> None:
        """Adds lines, and their time."""
        began = time.perf_counter()
        self._journal.append(*lines)
        self.writes += 1
        self.seconds += time.perf_counter() - began


def main(arguments: list[str] | None = None) -> None:
    """Prints one line; as the worker, serves."""
    given = sys.argv[1:] if arguments is None else arguments
    if given == ["worker"]:
        worker.main(lambda opening, progress: Instant(), dict)
        return
    parser = argparse.ArgumentParser(description="Measures what a batch run costs by itself.")
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--bytes", type=int, default=2000, help="of each text, about")
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args(given)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        print(measured(Path(folder), asked.records, asked.bytes, asked.parallel))


def measured(folder: Path, records: int, size: int, parallel: int) -> str:
    """Runs once; what it took."""
    write(folder / "in.jsonl", InputFormat.JSONL, records, size)
    source = check_input(folder / "in.jsonl")
    mark = Fingerprint({}, {}, {"id": "instant"}, {"target": {"sha256": None}}, "capt", {})
    crew = Crew(lambda: WorkerProcess([sys.executable, "-m", __spec__.name, "worker"]))
    try:
        while crew.hello(1.0) is None:
            pass
        crew.load(packed(Opening(store.find("demo"), parallel=parallel)))
        with Journal.open(folder / "out.jsonl", mark) as journal:
            timed, progress = Timed(journal), Progress(records)
            began = time.process_time()
            job = Job(source, timed, Origin(mark), GenerateOptions(), tuple(range(records)))
            runner = Runner(job, crew, progress, tell=lambda _: None, stop=lambda: False)
            runner.run()
            seconds, cpu = progress.seconds, time.process_time() - began
    finally:
        crew.kill()
    assert progress.done == records and not progress.failed
    whole, kept, busy = (1000 * each / records for each in (seconds, timed.seconds, cpu))
    rest = whole - kept
    return (
        f"{records} records: {whole:.2f} ms each, {kept:.2f} ms of it in the journal "
        f"({timed.writes} writes, {1000 * timed.seconds / timed.writes:.2f} ms each; "
        f"{plain(folder, rest):.2f} ms a plain write and fsync), {rest:.2f} ms the rest; "
        f"{busy:.2f} ms of the processor in the run's process"
    )


def plain(folder: Path, pause: float) -> float:
    """Milliseconds of a write and an fsync of a line like those of the output.

    Args:
        folder: on whose disk.
        pause: milliseconds between them; many disks are faster without.
    """
    line = (folder / "out.jsonl").read_bytes().partition(b"\n")[0]
    seconds = 0.0
    with (folder / "plain").open("wb", buffering=0) as stream:
        for _ in range(_PLAIN):
            time.sleep(pause / 1000)
            began = time.perf_counter()
            stream.write(line)
            os.fsync(stream.fileno())
            seconds += time.perf_counter() - began
    return 1000 * seconds / _PLAIN


if __name__ == "__main__":
    main()
