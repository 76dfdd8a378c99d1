"""The order of work: records to the worker, outcomes to the journal, until all are done.

The only state besides the journal is which records are at hand; whenever the run ends, what the
journal holds is all that is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from capt_local.batch.asks import as_message, settings_of
from capt_local.batch.crew import Crew
from capt_local.batch.events import News, Outcome
from capt_local.batch.output import Asked, Failure, Origin, OutputLine, code_of
from capt_local.batch.progress import Progress
from capt_local.batch.records import InputChanged, Record, TemplateFailed
from capt_local.batch.structured import Form, problem
from capt_local.decoding.options import GenerateOptions
from capt_local.errors import CaptError

_WAIT = 0.1  # seconds without an event until signals and the display get their turn
_TOGETHER = 64  # lines that one fsync may be for


class Source(Protocol):
    """The input, as far as it matters here; see `sources`."""

    ids: Sequence[str]

    def record(self, place: int) -> Record:
        """Reads a record again."""

    def line(self, place: int) -> tuple[int, str]:
        """Where it was, and the digest of what it was."""


class Journal(Protocol):
    """The output, likewise; see `journal`."""

    def append(self, *lines: OutputLine) -> None:
        """Adds lines; they are on the disk when this returns."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one run has to do.

    Attributes:
        source: the input.
        journal: the output.
        origin: makes lines.
        options: of answers.
        places: of the records that are to be done, in their order; see `places_to_do`.
        logprobs: whether the output holds log-probabilities, where a record does not say.
        form: what checks a structured answer; None where there is no schema.
        fail_fast: whether the first failed record ends the run.
    """

    source: Source
    journal: Journal
    origin: Origin
    options: GenerateOptions
    places: tuple[int, ...]
    logprobs: bool = False
    form: Form | None = None
    fail_fast: bool = False


def places_to_do(ids: Iterable[str], done: Mapping[str, str], limit: int | None) -> tuple[int, ...]:
    """Which records are left.

    Args:
        ids: of all records, in the order of the input.
        done: those that have a line.
        limit: at most so many.
    """
    left = [place for place, id in enumerate(ids) if id not in done]
    return tuple(left if limit is None else left[:limit])


class Runner:
    """Does a job.

    Args:
        job: what there is to do.
        crew: does it; it has been told what to load.
        progress: counts.
        tell: told of everything besides the records themselves.
        stop: whether to stop; asked at least every 0.1 s.
        now: seconds since 1970.
    """

    def __init__(
        self,
        job: Job,
        crew: Crew,
        progress: Progress,
        *,
        tell: Callable[[News], None],
        stop: Callable[[], bool],
        now: Callable[[], float] = time.time,
    ) -> None:
        """Does nothing yet."""
        self._job, self._crew, self._progress = job, crew, progress
        self._tell, self._stop, self._now = tell, stop, now
        self._hand: dict[int, tuple[Asked, bool]] = {}
        self._lines: list[OutputLine] = []  # finished, and not on the disk yet
        self._halted = False

    def run(self) -> bool:
        """Works until all is done, or until it is to stop. Records at hand are dropped then.

        Returns:
            Whether all is done.

        Raises:
            JournalFull, JournalBroken: the disk fails.
            CaptError: no worker can be started any more.
        """
        todo = iter(self._job.places)
        more = True
        while True:
            more = more and self._fill(todo)
            # The worker has its next records by now: it computes while the disk is waited for.
            self._commit()
            if self._halted:
                return False
            if not more and self._crew.idle:
                return True
            if self._stop():
                return False
            self._listen(0.0 if more and self._crew.room else _WAIT)

    def _fill(self, todo: Iterator[int]) -> bool:
        """Puts records to the crew while it takes some; whether there may be more."""
        while self._crew.room and len(self._lines) < _TOGETHER and not self._halted:
            place = next(todo, None)
            if place is None:
                self._crew.no_more()
                return False
            self._put(place)
        return True

    def _put(self, place: int) -> None:
        job = self._job
        try:
            record = job.source.record(place)
        except (InputChanged, TemplateFailed) as error:
            asked = Asked(job.source.ids[place], *job.source.line(place))
            self._fail(asked, Failure(code_of(error), str(error)))
            return
        try:
            settings = settings_of(record, job.options)
        except CaptError as error:
            self._fail(Asked.about(record), Failure(code_of(error), str(error)))
            return
        wanted = record.settings.logprobs
        logprobs = job.logprobs if wanted is None else wanted
        self._hand[place] = Asked.about(record, settings.seed), logprobs
        self._crew.put(place, as_message(place, record, settings))

    def _listen(self, seconds: float) -> None:
        """Takes in what has happened, all that is there already among it."""
        try:
            while (event := self._crew.take(seconds)) is not None:
                if isinstance(event, Outcome):
                    self._settle(event)
                else:
                    self._note(event)
                if self._halted or len(self._lines) >= _TOGETHER:
                    return
                seconds = 0.0
        except CaptError:
            self._commit()  # what is finished is kept, whatever became of the worker
            raise

    def _settle(self, outcome: Outcome) -> None:
        """Writes the line of a record."""
        asked, logprobs = self._hand.pop(outcome.key)
        if outcome.failure is not None:
            self._fail(asked, outcome.failure)
            return
        answer = outcome.answer or {}
        self._write(
            self._job.origin.answered(
                asked,
                answer,
                self._now(),
                logprobs=logprobs,
                invalid=problem(answer, self._job.form),
            )
        )

    def _fail(self, asked: Asked, failure: Failure) -> None:
        self._write(self._job.origin.failed(asked, failure, self._now()))

    def _write(self, line: OutputLine) -> None:
        self._lines.append(line)
        self._halted = self._halted or (self._job.fail_fast and line.error is not None)

    def _commit(self) -> None:
        """Puts the finished lines on the disk, with one fsync for all; then they count as done."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        self._job.journal.append(*lines)
        for line in lines:
            self._progress.add(line)
        self._tell(News())

    def _note(self, news: News) -> None:
        if news.ready is not None:
            self._progress.ready()
        self._tell(news)
