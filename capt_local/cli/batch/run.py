"""One batch run, from its checked flags and input to its exit code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capt_local.batch.audit import AuditLog
from capt_local.batch.crew import Crew
from capt_local.batch.events import News
from capt_local.batch.fingerprint import Fingerprint
from capt_local.batch.journal import Journal, JournalBroken
from capt_local.batch.journal_found import look
from capt_local.batch.output import OK, Origin
from capt_local.batch.process import WorkerProcess, worker_command
from capt_local.batch.progress import Progress
from capt_local.batch.runner import Job, Runner, places_to_do
from capt_local.batch.sources import Source
from capt_local.cli.batch.flags import RunFlags
from capt_local.cli.batch.setup import Chosen, Settled, facts, fingerprint, opening
from capt_local.cli.batch.told import Told, summary_line
from capt_local.cli.exits import ExitCode, code_for, wants_traceback
from capt_local.cli.signals import Signals
from capt_local.errors import Cancelled, CaptError

_WAIT = 0.1  # seconds until signals get their turn

Summary = dict[str, Any]


def start_worker() -> WorkerProcess:
    """A worker; what it prints is shown only where tracebacks are, since it may be text."""
    return WorkerProcess(worker_command(), show=wants_traceback())


def hello_of(crew: Crew, signals: Signals) -> Mapping[str, Any]:
    """What the worker says before it loads its models.

    Raises:
        Cancelled: a signal came first.
        CaptError: it cannot start.
    """
    while (hello := crew.hello(_WAIT)) is None:
        _check(signals)
    return hello


def _check(signals: Signals) -> None:
    """Ends what has no half result."""
    if signals.requested:
        raise Cancelled("interrupted")


@dataclass(frozen=True, slots=True)
class Plan:
    """A run of which everything is checked that can be without the models.

    Attributes:
        output: where lines go.
        run: how it goes.
        flags: what decides the answers.
        fixed: what the flags leave open.
        source: the input.
        raw: whether prompts are texts to go on with.
        audit: the log of runs; None for none.
    """

    output: Path
    run: RunFlags
    flags: Chosen
    fixed: Settled
    source: Source
    raw: bool
    audit: AuditLog | None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended.

    Attributes:
        code: of the process.
        summary: for people and programs; None where nothing was begun.
    """

    code: int
    summary: Summary | None = None


class BatchRun:
    """A run. `go` once.

    Args:
        plan: what there is to do.
        told: tells of it.
        signals: which may stop it; entered.
        start: starts a worker.
    """

    def __init__(
        self,
        plan: Plan,
        told: Told,
        signals: Signals,
        start: Callable[[], WorkerProcess] = start_worker,
    ) -> None:
        """Starts nothing yet."""
        self._plan, self._told, self._signals, self._start = plan, told, signals, start

    def check(self) -> Ended:
        """Looks at all that `go` would, the models apart. Writes nothing.

        Raises:
            Cancelled: it was stopped.
            CaptError: the output is of another run, or cannot be written.
        """
        plan = self._plan
        crew = Crew(self._start)
        try:
            mark = self._mark(hello_of(crew, self._signals))
        finally:
            crew.kill()
        records, again = plan.source.lines(), plan.run.retry_errors
        found = look(plan.output, mark, records, retry_errors=again, new=plan.run.force_new)
        self._told.notes(found.notices)
        done = {id: kept.code for id, kept in found.done(retry_errors=again).items()}
        left = len(places_to_do(plan.source.ids, done, None))
        self._told.note(
            f"checked: {len(plan.source)} records in the input; {len(done)} are done, {left} to be "
            "done. No model was loaded, and nothing written."
        )
        counts = {"records": len(plan.source), "already_done": len(done), "left": left}
        return Ended(ExitCode.OK, {**counts, "torn_bytes": found.lines.torn})

    def go(self) -> Ended:
        """Does all records that are left.

        Raises:
            Cancelled: it was stopped before it wrote anything.
            CaptError: the output is of another run, a model cannot be loaded, the disk is full, ...
        """
        plan = self._plan
        crew = Crew(self._start, patience=plan.run.patience)
        with contextlib.ExitStack() as stack:
            stack.callback(crew.kill)
            hello = hello_of(crew, self._signals)
            mark = self._mark(hello)
            _check(self._signals)
            journal = stack.enter_context(self._opened(mark, hello))
            self._told.notes(journal.notices)
            ids = plan.source.ids
            left = places_to_do(ids, journal.done, None)
            places = left[: plan.run.limit]
            progress = Progress(len(places), before=len(journal.done))
            job = Job(
                plan.source,
                journal,
                Origin(mark),
                plan.flags.options,
                places,
                logprobs=plan.flags.logprobs,
                form=plan.flags.form,
                fail_fast=plan.run.fail_fast,
            )
            if plan.audit is not None:
                plan.audit.start(journal.manifest, len(places))
            if places:
                crew.load(opening(plan.flags, plan.fixed, mark, raw=plan.raw))
            return self._worked(job, crew, journal, progress, len(left))

    def _mark(self, hello: Mapping[str, Any]) -> Fingerprint:
        plan = self._plan
        return fingerprint(plan.flags, plan.fixed, plan.source, hello)

    def _opened(self, mark: Fingerprint, hello: Mapping[str, Any]) -> Journal:
        """The output, compared with the input as it is now."""
        plan = self._plan
        return Journal.open(
            plan.output,
            mark,
            records=plan.source.lines(),
            retry_errors=plan.run.retry_errors,
            force_new=plan.run.force_new,
            facts=facts(plan.flags, plan.source, mark, hello),
        )

    def _worked(
        self, job: Job, crew: Crew, journal: Journal, progress: Progress, left: int
    ) -> Ended:
        """The work, and what is said of it."""
        whole, failure = False, None
        self._told.count(progress)
        try:
            whole = self._answered(job, crew, journal, progress)
        except Exception as error:  # no KeyboardInterrupt: a second Ctrl-C writes nothing more
            failure = error
        finally:
            self._told.clear()
        code = int(code_for(failure)) if failure else self._code(journal, whole=whole)
        summary = self._summary(journal, progress, left, code)
        trouble = self._concluded(journal, summary)
        if failure is not None:
            # That the same disk fails again is no news.
            again = isinstance(failure, JournalBroken) and isinstance(trouble, JournalBroken)
            self._told.notes([str(trouble)] if trouble and not again else ())
            raise failure
        self._tell_end(summary, whole=whole)
        if trouble is not None:
            raise trouble
        return Ended(code, summary)

    def _answered(self, job: Job, crew: Crew, journal: Journal, progress: Progress) -> bool:
        """Whether all records are done, and the lines in the order that was asked for."""

        def tell(news: News) -> None:
            if news.ready is not None:
                self._told.notes(journal.tell_provenance({"loaded": news.ready["models"]}))
            self._told.news(news)

        if job.places:
            if not Runner(job, crew, progress, tell=tell, stop=self._stop).run():
                return False
            crew.finish(self._stop)
        if self._plan.run.in_order:
            if self._signals.requested:
                return False
            journal.put_in_order(self._plan.source.ids)
        return True

    def _concluded(self, journal: Journal, summary: Summary) -> CaptError | None:
        """Notes the end of the run; what went wrong with that, which hides nothing else."""
        audit = self._plan.audit
        trouble: CaptError | None = None
        if audit is not None:
            try:
                audit.end(summary)
            except CaptError as error:
                trouble = error
        if trouble is not None:
            summary["exit_code"] = int(code_for(trouble))
        try:
            journal.conclude(summary)
        except CaptError as error:
            trouble = trouble or error
        return trouble

    def _stop(self) -> bool:
        self._told.tick()
        return self._signals.requested

    def _code(self, journal: Journal, *, whole: bool) -> int:
        if self._signals.requested and not whole:
            return self._signals.code or ExitCode.INTERRUPTED
        failed = any(code != OK for code in journal.done.values())
        return ExitCode.FAILED_RECORDS if failed else ExitCode.OK

    def _summary(self, journal: Journal, progress: Progress, left: int, code: int) -> Summary:
        """Figures of this run, and what is left of the whole."""
        summary = progress.as_object() | {"left": left - progress.done, "exit_code": code}
        failed = sum(value != OK for value in journal.done.values())
        summary["failed_before"] = failed - progress.failed
        return summary

    def _tell_end(self, summary: Summary, *, whole: bool) -> None:
        changed = self._plan.source.changed()
        self._told.notes([changed] if changed else ())
        self._told.note(summary_line(summary))
        if not whole and not summary["left"]:
            self._told.note("stopped before the output was put in order: the same command does it.")
        if summary["left"]:
            again = " (without --force-new)" if self._plan.run.force_new else ""
            why = "" if whole else "stopped; "
            count = summary["left"]
            self._told.note(
                f"{why}{count} record{'s are' if count > 1 else ' is'} left: the same "
                f"command{again} goes on with {'them' if count > 1 else 'it'}."
            )
