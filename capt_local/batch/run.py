"""The main loop of a run: records to the workers, outcomes to the journal, until all are done.

The only state besides the journal is the set of records in flight, so the run may end at any time:
what is done is what the journal holds.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from capt_local.batch.journal import OutputJournal
from capt_local.batch.output import OK, Failure, LineWriter, OutputLine, answer_text
from capt_local.batch.readers import InputSource
from capt_local.batch.records import BatchRecord, InputChanged, record_seed
from capt_local.batch.supervisor import RecordOutcome, WorkerEvent, Workers, pack
from capt_local.bundles.manifest import Bundle
from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.structured import structure_problem
from capt_local.documents import Document
from capt_local.errors import CaptError
from capt_local.grounding import Source, ground
from capt_local.llama.options import LoadOptions

_POLL = 0.1  # seconds without an event until signals and the display get their turn
_TOGETHER = 64  # most lines per fsync
_PARALLEL, _PARALLEL_ON_ONE_CORE = 8, 4  # more records at once gain little on a processor
_MEMORY_SHARE = 0.9  # of the free memory that a run may use


@dataclass(frozen=True, slots=True)
class BatchJob:
    """What one run has to do."""

    source: InputSource
    journal: OutputJournal
    lines: LineWriter
    options: GenerateOptions
    indices: Sequence[int]  # of the records that are to be done, in their order
    logprobs: bool = False  # whether the output holds log-probabilities
    require_sources: bool = False  # a record fails where its answer has facts that its note has not


def records_at_once(
    bundle: Bundle, options: GenerateOptions, load: LoadOptions, *, cores: int
) -> int:
    """The value of `--parallel auto` on this machine: 1 to 8, as many as fit into memory.

    Only main memory is considered; if the memory of a GPU is too small, loading reports it.

    Raises:
        ModelError: a model is missing or broken.
    """
    from capt_local.llama.load_models import estimates
    from capt_local.llama.resources import available_memory

    roles = options.method.roles or tuple(bundle.models)
    files = {role: bundle.models[role].path for role in roles if role in bundle.models}
    needed = estimates(files, load, bundle.adapters).values()
    # Each model has a context of its own besides those of the records.
    once = sum(one.total + one.buffers for one in needed)
    each = sum(one.kv_cache for one in needed)
    free = int(available_memory() * _MEMORY_SHARE) - once
    most = _PARALLEL if cores > 1 else _PARALLEL_ON_ONE_CORE
    return max(1, min(most, free // each if each else most))


@dataclass(slots=True)
class RunProgress:
    """Counts and times of this run, without the records that were done `before` it."""

    total: int
    before: int = 0
    by_code: Counter[str] = field(default_factory=Counter)  # `ok`, or the code of the error
    answer_tokens: int = 0
    prompt_tokens: int = 0
    began: float = field(default_factory=time.monotonic)
    started: float = 0.0  # when the models were loaded

    def add(self, line: OutputLine) -> None:
        self.by_code[line.code] += 1
        if line.response is not None:
            usage = line.response["body"]["usage"]
            self.answer_tokens += usage["completion_tokens"]
            self.prompt_tokens += usage["prompt_tokens"]

    @property
    def done(self) -> int:
        """Records done now, failed ones included."""
        return self.by_code.total()

    @property
    def failed(self) -> int:
        """Records that failed now."""
        return self.done - self.by_code[OK]

    @property
    def seconds(self) -> float:
        """Since the models were loaded."""
        return time.monotonic() - self.started if self.started else 0.0

    @property
    def speed(self) -> float:
        """Answer tokens per second."""
        return self.answer_tokens / self.seconds if self.seconds else 0.0

    def as_object(self) -> dict[str, Any]:
        failed = {code: count for code, count in sorted(self.by_code.items()) if code != OK}
        now = time.monotonic()
        return {
            "records": self.total,
            "done": self.by_code[OK],
            "failed": failed,
            "already_done": self.before,
            "answer_tokens": self.answer_tokens,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens_per_second": round(self.speed, 3),
            "records_per_second": round(self.done / self.seconds, 6) if self.seconds else 0.0,
            "seconds": round(now - self.began, 3),
            "load_seconds": round((self.started or now) - self.began, 3),
        }


def run_job(
    job: BatchJob,
    workers: Workers,
    progress: RunProgress,
    *,
    report: Callable[[WorkerEvent], None],
    stop: Callable[[], bool],
) -> bool:
    """Runs until all records are done or `stop` is true; then records in flight are dropped.

    `report` is called with everything that happens besides the records themselves, and with an
    empty `WorkerEvent` after each commit; `stop` at least every 0.1 s. Returns whether all is done.

    Raises:
        DiskFailed: the disk fails.
        CaptError: no worker can be started any more.
    """
    in_flight: dict[int, BatchRecord] = {}
    form = job.options.structure
    schema = json.loads(form.source) if form else None
    lines: list[OutputLine] = []  # finished, and not on the disk yet
    todo, more = iter(job.indices), True

    def put(index: int) -> None:
        try:
            record = job.source.record(index)
        except InputChanged as error:
            number, sha256 = job.source.line(index)
            record = BatchRecord(number, job.source.ids[index], "", sha256)
            lines.append(job.lines.failed(record, Failure.of(error), time.time()))
            return
        in_flight[index] = record
        # The worker knows the record by `index` alone.
        message = {
            "request": index,
            "prompt": pack(record.prompt),
            "seed": record_seed(job.options.sample.seed, record.id),
            "adapter_scales": record.adapter_scales,
        }
        if job.require_sources:
            message["source"] = (note_of(record).text, record.of)
        workers.put(index, message)

    def finish(outcome: RecordOutcome) -> OutputLine:
        record = in_flight.pop(outcome.key)
        if outcome.failure is not None:
            return job.lines.failed(record, outcome.failure, time.time())
        answer = outcome.answer or {}
        text, source = answer_text(answer["choices"][0]), Source(note_of(record))
        sources = ground(text, source, schema=schema, of=record.of)
        if job.require_sources and sources.unsupported:
            return job.lines.failed(record, Failure("abstained", f"{sources.reason}."), time.time())
        answer = {**answer, "capt": {**answer["capt"], "sources": msgspec.to_builtins(sources)}}
        invalid = structure_problem(answer)
        return job.lines.answered(
            record, answer, time.time(), logprobs=job.logprobs, invalid=invalid
        )

    def commit() -> None:
        """Appends the finished lines to the journal with one fsync, then counts them as done."""
        if lines:
            job.journal.append(*lines)
            for line in lines:
                progress.add(line)
            lines.clear()
            report(WorkerEvent())

    while True:
        while more and workers.accepts_more and len(lines) < _TOGETHER:
            if (index := next(todo, None)) is None:
                workers.close_input()
                more = False
            else:
                put(index)
        # The workers already have their next records and compute during the fsync.
        commit()
        if not more and workers.idle:
            return True
        if stop():
            return False
        seconds = 0.0 if more and workers.accepts_more else _POLL
        try:
            while (event := workers.poll(seconds)) is not None:
                seconds = 0.0  # all that is there already
                if isinstance(event, RecordOutcome):
                    lines.append(finish(event))
                    if len(lines) >= _TOGETHER:
                        break
                    continue
                if event.ready is not None:
                    progress.started = progress.started or time.monotonic()
                report(event)
        except CaptError:
            commit()  # what is finished is written, whatever became of the worker
            raise


def note_of(record: BatchRecord) -> Document:
    """The source that the answer to a record is checked against: its note, or else its prompt."""
    if record.note is not None:
        return record.note
    turns = (record.prompt,) if isinstance(record.prompt, str) else record.prompt
    return Document("\n".join(t if isinstance(t, str) else t.content for t in turns))


def readable_time(seconds: float) -> str:
    """A duration as text: 45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
