"""The order of work: records to the workers, outcomes to the journal, until all are done.

The only state besides the journal is which records are in flight; whenever the run ends, what the
journal holds is all that is done.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from capt_local.batch import ipc
from capt_local.batch.journal import OutputJournal
from capt_local.batch.output import OK, Failure, LineWriter, OutputLine, RecordRef
from capt_local.batch.readers import InputSource
from capt_local.batch.records import InputChanged, TemplateFailed
from capt_local.batch.supervisor import News, RecordOutcome, Workers
from capt_local.bundles.manifest import Bundle
from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.structured import SchemaCheck, structure_problem
from capt_local.errors import CaptError
from capt_local.llama.options import LoadOptions

_POLL = 0.1  # seconds without an event until signals and the display get their turn
_TOGETHER = 64  # lines that one fsync may be for
_PARALLEL, _PARALLEL_ON_ONE_CORE = 8, 4  # more records at once gain little on a processor
_MEMORY_SHARE = 0.9  # of the free memory; other programs want some, too


@dataclass(frozen=True, slots=True)
class Job:
    """What one run has to do.

    Attributes:
        source: the input.
        journal: the output.
        lines: makes lines.
        options: of answers.
        indices: of the records that are to be done, in their order; see `records_left`.
        logprobs: whether the output holds log-probabilities, where a record does not say.
        schema: that answers must satisfy; None for none.
        fail_fast: whether the first failed record ends the run.
    """

    source: InputSource
    journal: OutputJournal
    lines: LineWriter
    options: GenerateOptions
    indices: Sequence[int]
    logprobs: bool = False
    schema: SchemaCheck | None = None
    fail_fast: bool = False


def records_left(ids: Iterable[str], done: Mapping[str, str]) -> list[int]:
    """Indices of the records that have no line yet."""
    return [index for index, id in enumerate(ids) if id not in done]


def records_at_once(
    bundle: Bundle, options: GenerateOptions, load: LoadOptions, *, cores: int
) -> int:
    """What `--parallel auto` is on this machine now: 1 to 8, as many as fit into memory.

    Beside a GPU only the machine's own memory is weighed; a GPU without room reports it later.

    Raises:
        ModelError: a model is missing or broken.
    """
    from capt_local.llama.load_models import estimates
    from capt_local.llama.memory import available_memory

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
class Progress:
    """Counts and times of this run.

    Attributes:
        total: records of this run, without those that were done before.
        before: records that were done before.
        by_code: records done now, by `ok` or the code of their error.
        answer_tokens, prompt_tokens: of the answers that were made now.
        clock: seconds, from any beginning.
        began, started: when the run began, and when the models were loaded (None before).
    """

    total: int
    before: int = 0
    by_code: Counter[str] = field(default_factory=Counter)
    answer_tokens: int = 0
    prompt_tokens: int = 0
    clock: Callable[[], float] = time.monotonic
    started: float | None = None
    began: float = 0.0

    def __post_init__(self) -> None:
        self.began = self.clock()

    def models_ready(self) -> None:
        """The models are loaded, for the first time or again."""
        if self.started is None:
            self.started = self.clock()

    def add(self, line: OutputLine) -> None:
        """Counts a line."""
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
    def share(self) -> float:
        """The part of this run that is done, 0 to 1."""
        return self.done / self.total if self.total else 1.0

    @property
    def seconds(self) -> float:
        """Since the models were loaded."""
        return 0.0 if self.started is None else self.clock() - self.started

    @property
    def speed(self) -> float:
        """Answer tokens per second."""
        return self.answer_tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Until the end, at the speed so far; None before the first record."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        failed = {code: count for code, count in sorted(self.by_code.items()) if code != OK}
        return {
            "records": self.total,
            "done": self.by_code[OK],
            "failed": failed,
            "already_done": self.before,
            "left": self.total - self.done,
            "answer_tokens": self.answer_tokens,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens_per_second": round(self.speed, 3),
            "records_per_second": round(self.done / self.seconds, 6) if self.seconds > 0 else 0.0,
            "seconds": round(self.clock() - self.began, 3),
            "load_seconds": round((self.started or self.clock()) - self.began, 3),
        }


class Runner:
    """Does a job.

    Args:
        job: what there is to do.
        workers: that do it; they are loading the models.
        progress: counts.
        report: called with everything that happens besides the records themselves, and with an
            empty `News` after each commit.
        stop: whether to stop; asked at least every 0.1 s.
        now: seconds since 1970.
    """

    def __init__(
        self,
        job: Job,
        workers: Workers,
        progress: Progress,
        *,
        report: Callable[[News], None],
        stop: Callable[[], bool],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._job, self._workers, self._progress = job, workers, progress
        self._report, self._stop, self._now = report, stop, now
        self._in_flight: dict[int, tuple[RecordRef, bool]] = {}
        self._lines: list[OutputLine] = []  # finished, and not on the disk yet
        self._failed_fast = False

    def run(self) -> bool:
        """Works until all is done, or until it is to stop; records in flight are dropped then.

        Returns:
            Whether all is done.

        Raises:
            JournalFull, JournalBroken: the disk fails.
            CaptError: no worker can be started any more.
        """
        todo = iter(self._job.indices)
        more = True
        while True:
            more = more and self._fill(todo)
            # The workers have their next records by now: they compute while the disk is waited for.
            self._commit()
            if self._failed_fast:
                return False
            if not more and self._workers.idle:
                return True
            if self._stop():
                return False
            self._receive(0.0 if more and self._workers.has_room else _POLL)

    def _fill(self, todo: Iterator[int]) -> bool:
        """Puts records while the workers have room; returns whether there may be more."""
        while self._workers.has_room and len(self._lines) < _TOGETHER and not self._failed_fast:
            index = next(todo, None)
            if index is None:
                self._workers.no_more()
                return False
            self._put(index)
        return True

    def _put(self, index: int) -> None:
        job = self._job
        try:
            record = job.source.record(index)
        except (InputChanged, TemplateFailed) as error:
            ref = RecordRef(job.source.ids[index], *job.source.line(index))
            self._fail(ref, Failure.of(error))
            return
        try:
            settings = record.request_settings(job.options)
        except CaptError as error:
            self._fail(RecordRef.of(record), Failure.of(error))
            return
        own = record.settings.logprobs
        self._in_flight[index] = (
            RecordRef.of(record, settings.seed),
            job.logprobs if own is None else own,
        )
        self._workers.put(index, ipc.pack_request(index, record, settings))

    def _receive(self, seconds: float) -> None:
        """Handles what has happened, all that is there already included."""
        try:
            while (event := self._workers.poll(seconds)) is not None:
                if isinstance(event, RecordOutcome):
                    self._finish(event)
                else:
                    if event.ready is not None:
                        self._progress.models_ready()
                    self._report(event)
                if self._failed_fast or len(self._lines) >= _TOGETHER:
                    return
                seconds = 0.0
        except CaptError:
            self._commit()  # what is finished is written, whatever became of the worker
            raise

    def _finish(self, outcome: RecordOutcome) -> None:
        """Makes the line of a record."""
        record, logprobs = self._in_flight.pop(outcome.key)
        if outcome.failure is not None:
            self._fail(record, outcome.failure)
            return
        answer = outcome.answer or {}
        invalid = structure_problem(answer, self._job.schema)
        self._add(
            self._job.lines.answered(
                record, answer, self._now(), logprobs=logprobs, invalid=invalid
            )
        )

    def _fail(self, record: RecordRef, failure: Failure) -> None:
        self._add(self._job.lines.failed(record, failure, self._now()))

    def _add(self, line: OutputLine) -> None:
        self._lines.append(line)
        self._failed_fast |= self._job.fail_fast and line.error is not None

    def _commit(self) -> None:
        """Puts the finished lines on the disk, with one fsync for all; then they count as done."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        self._job.journal.append(*lines)
        for line in lines:
            self._progress.add(line)
        self._report(News())
