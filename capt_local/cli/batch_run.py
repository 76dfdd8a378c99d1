"""A batch run, from its flags to its exit code, and what it reports meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capt_local.batch.journal import WHAT, OutputJournal, read_manifest
from capt_local.batch.output import (
    OK,
    Fingerprint,
    LineWriter,
    RunManifest,
    answers_table,
    digest_of,
    fingerprint_of,
    manifest_path,
)
from capt_local.batch.readers import InputSource, check_input
from capt_local.batch.run import BatchJob, RunProgress, readable_time, records_at_once, run_job
from capt_local.batch.supervisor import (
    News,
    WorkerConfig,
    WorkerProcess,
    Workers,
    pack,
    worker_command,
)
from capt_local.bundles.manifest import Bundle
from capt_local.cli.batch import Flags
from capt_local.cli.exits import ExitCode, Signals, code_for, wants_traceback
from capt_local.cli.files import OutputFile, files_of, same_file
from capt_local.cli.session import (
    doubts,
    find_bundle,
    generate_options,
    load_options,
    pinned_date,
)
from capt_local.decoding.options import GenerateOptions
from capt_local.documents import SUFFIXES
from capt_local.errors import Cancelled, ContextOverflow, UsageError
from capt_local.line_file import DiskFailed
from capt_local.llama.options import LoadOptions
from capt_local.llama.resources import physical_cores
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen, drop_output
from capt_local.strict_json import read_bytes

_POLL = 0.1  # seconds until signals get their turn
_REDRAW, _LINE_EVERY = 0.1, 5.0  # seconds between two updates on a terminal, and elsewhere
_CONTEXT = 4096  # tokens that a context has at most where nobody says
_SHOWN = 20  # numbers of records that a note lists
_SCHEMA = "The schema (--json-schema)"
Summary = dict[str, Any]


def run_batch(flags: Flags) -> int:
    """Does the run and returns the exit code.

    Raises:
        CaptError: flags, input, output or models are not as they should be.
    """
    screen = Screen.standard(flags.view.verbose)
    display = ProgressDisplay(screen)
    run, report = flags.run, flags.report
    if run.output is None:
        raise UsageError("There is no output. Name a file with -o.")
    if run.check and report.csv:
        raise UsageError("--csv does not go with --check, which writes nothing.")
    if run.ray_actors is not None and run.ray is None:
        raise UsageError("--ray-actors goes with --ray.")
    if flags.system.system is not None and os.path.isfile(flags.system.system):
        raise UsageError("--system names a file: give --system-file.")
    bundle = find_bundle(flags.model)
    _check_places(flags, run.output, files_of(bundle))
    settings = BatchSettings.of(flags, bundle, run.output)
    screen.notes(doubts(settings.options))
    table = OutputFile(report.csv, "The table (--csv)") if report.csv else None
    source = _checked_input(flags, settings.options, display)
    if run.check:
        display.note(f"checked: {len(source)} records. No model was loaded, and nothing written.")
        summary: Summary = {"records": len(source), "skipped": len(source.skipped)}
        code = int(ExitCode.OK)
    else:
        with Signals() as signals, contextlib.ExitStack() as stack:
            this = BatchRun(flags, settings, source, run.output, display, signals)
            try:
                code, summary = this.answer(stack)
            except Cancelled:
                display.note("interrupted; nothing was written.")
                return signals.code or ExitCode.INTERRUPTED
        if table is not None:
            table.write(answers_table(run.output.read_bytes().splitlines()))
    if report.json:
        screen.line(dumps(summary, indent=1))
    return code


def _check_places(flags: Flags, output: Path, models: Iterable[Path]) -> None:
    """Refuses an output or a table in the place of something else that the run uses."""
    if str(output) == "-":
        raise UsageError(f"{WHAT} is a file: a run could not be resumed on standard output.")
    if not output.parent.is_dir():
        raise UsageError(f"{WHAT} cannot be written: its folder does not exist.")
    notes = flags.input.path
    files = (notes, flags.system.system_file, flags.input.template)
    form = flags.structure.json_schema
    used = [path for path in (*files, form, *models) if path is not None]
    for name, path in ((WHAT, output), ("The table (--csv)", flags.report.csv)):
        if path is None:
            continue
        if any(same_file(path, each) or path.resolve() == each.resolve() for each in used):
            raise UsageError(f"{name} is a file that the run uses otherwise. Name another one.")
        if path.suffix.lower() in SUFFIXES and path.resolve().parent == notes.resolve():
            raise UsageError(
                f"{name} would be read as a note: it ends in {path.suffix.lower()}, in the folder "
                "of the notes. Name it otherwise, or another folder."
            )
        used += [path, manifest_path(path)]


def _checked_input(flags: Flags, options: GenerateOptions, display: ProgressDisplay) -> InputSource:
    given = flags.input
    try:
        source = check_input(
            given.path,
            parser=given.parser(flags.system.text()),
            delimiter=given.delimiter.character if given.delimiter else None,
            document_field=given.document_field,
            encoding=given.encoding,
            options=options,
            skip_invalid=given.skip_invalid,
            progress=lambda share: display.fraction("checking the input", share),
        )
    finally:
        display.clear()
    display.notes(source.notices)
    return source


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """What decides the answers, from flags, bundle, and an earlier start of the same run.

    Attributes:
        date: today's date for chat templates: that of the run's first start.
        parallel: answers made at once.
        others: what else the fingerprint has of answers, as digests.
    """

    bundle: Bundle
    options: GenerateOptions
    load: LoadOptions
    date: str
    parallel: int
    others: Mapping[str, Any]

    @classmethod
    def of(cls, flags: Flags, bundle: Bundle, output: Path) -> BatchSettings:
        """Checks the flags. What they leave open is as it was when the run began.

        Raises:
            UsageError: a value has no meaning, some do not go together, or the manifest of the
                output is broken.
            ModelError: the scorer is missing or broken.
        """
        run, several = flags.run, flags.several
        if flags.report.top_logprobs and not flags.report.logprobs:
            raise UsageError("--top-logprobs goes with --logprobs.")
        options = generate_options(bundle, flags.method, flags.sample, flags.report.top_logprobs)
        options = flags.thoughts.added(options, flags.structure.structure())
        several.check(options)
        others: dict[str, Any] = {"schema_sha256": _schema_digest(flags.structure.json_schema)}
        if several.best_of > 1:
            # What is wrong with a scorer is found before a worker starts.
            from capt_local.rerank import open_scorer

            opened = open_scorer(several.scorer, bundle, flags.model.verify)
            with opened or contextlib.nullcontext() as scorer:
                others |= {"best_of": several.best_of, "scorer": scorer and scorer.digest}
        if flags.sources.require_sources:
            others["require_sources"] = True
        load, date = load_options(flags.model, bundle), pinned_date(flags.model)
        if run.ray is not None and load.threads is None:
            # Actors on other machines must compute with as many.
            here = run.ray_actors or 1 if run.ray == "local" else 1
            load = dataclasses.replace(load, threads=max(1, physical_cores() // here))
        before = None if run.force_new else read_manifest(output)
        parallel = run.records_at_once or _earlier(before, "computing", "parallel", int)
        if parallel is None:
            cores = load.threads or physical_cores()
            parallel = records_at_once(bundle, options, load, cores=cores)
        day = str(date) if date else _earlier(before, "prompt", "date", str)
        day = day or datetime.date.today().isoformat()
        return cls(bundle, options, load, day, parallel, others)

    def fingerprint(
        self, source: InputSource, facts: Mapping[str, Any], *, logprobs: bool
    ) -> Fingerprint:
        """That of the run; `facts` are what a worker has sent first. Raises ModelError."""
        load, packed = self.load, pack(self.load)
        placed = ("devices", "tensor_split", "placements")
        return fingerprint_of(
            self.bundle,
            self.options,
            versions=facts["versions"],
            build=facts["build"],
            prompt={**source.described(), "date": self.date, **self.others},
            computing={
                "parallel": self.parallel,
                "threads": load.threads or physical_cores(),
                "context": load.context,
                "batch": load.batch,
                "gpu_layers": load.gpu_layers,
                "flash_attention": load.flash_attention,
                "kv_type": load.kv_type,
                **{name: packed[name] for name in placed if packed[name]},
            },
            output={"logprobs": logprobs},
        )

    def provenance(self, fingerprint: Fingerprint, facts: Mapping[str, Any]) -> dict[str, Any]:
        """What the manifest says of this start."""
        bundle = self.bundle
        return {
            **facts,
            "bundle": {
                "id": bundle.id,
                "version": bundle.version,
                "licence": bundle.licence,
                "signer": bundle.signer.as_object() if bundle.signer else None,
            },
            "notices": list(bundle.notices),
            "loading": pack(self.load),
            "method": fingerprint["method"],
            "parameters": fingerprint["parameters"],
        }

    def worker_config(self, fingerprint: Fingerprint, flags: Flags) -> WorkerConfig:
        """What a worker loads: exactly the models of the fingerprint."""
        models = {
            role: dataclasses.replace(file, sha256=fingerprint["models"][role]["sha256"])
            for role, file in self.bundle.models.items()
        }
        return WorkerConfig(
            bundle=dataclasses.replace(self.bundle, models=models),
            options=self.options,
            load=self.load,
            date=datetime.date.fromisoformat(self.date),
            check=flags.model.verify,
            raw=flags.input.raw,
            parallel=self.parallel,
            best_of=flags.several.best_of,
            scorer=flags.several.scorer,
        )


def _schema_digest(path: Path | None) -> str | None:
    return None if path is None else digest_of(read_bytes(path, _SCHEMA).decode())


def _earlier(before: RunManifest | None, group: str, name: str, kind: type[Any]) -> Any:
    """A value of the fingerprint of an earlier start; None where there is none."""
    values = before.fingerprint.get(group) if before else None
    value = values.get(name) if isinstance(values, dict) else None
    return value if isinstance(value, kind) else None


def start_worker() -> WorkerProcess:
    """A worker; what it prints is shown only where tracebacks are, since it may be text."""
    return WorkerProcess(worker_command(), show=wants_traceback())


@dataclass(frozen=True, slots=True)
class BatchRun:
    """One run; `run_batch` has checked everything that needs no worker."""

    flags: Flags
    settings: BatchSettings
    source: InputSource
    output: Path
    display: ProgressDisplay
    signals: Signals

    def answer(self, stack: contextlib.ExitStack) -> tuple[int, Summary]:
        """Answers all records that are left. Returns exit code and summary.

        Raises:
            Cancelled: it was stopped before it wrote anything.
            CaptError: the output is of another run, a model cannot be loaded, the disk is full...
        """
        run, settings, source = self.flags.run, self.settings, self.source
        workers = self._workers(stack)
        while (facts := workers.hello(_POLL)) is None:
            if self.signals.requested:
                raise Cancelled("interrupted")
        fingerprint = settings.fingerprint(source, facts, logprobs=self.flags.report.logprobs)
        if self.signals.requested:
            raise Cancelled("interrupted")
        journal = OutputJournal.open(
            self.output,
            fingerprint,
            records=source.lines(),
            input={**source.described(), "records": len(source), "sha256": source.digest},
            provenance=settings.provenance(fingerprint, facts),
            retry_errors=run.retry_errors,
            force_new=run.force_new,
        )
        stack.enter_context(journal)
        self.display.notes(journal.notices)
        left = [index for index, id in enumerate(source.ids) if id not in journal.done]
        now = left[: run.limit]
        # A token has at least one byte. Texts that may be too long go first: those that are fail
        # without being computed, so they are reported before the long work.
        context = settings.load.context or _CONTEXT
        long = [index for index in now if source.size(index) > context]
        now.sort(key=lambda index: source.size(index) <= context)
        job = BatchJob(
            source,
            journal,
            LineWriter(fingerprint),
            settings.options,
            now,
            logprobs=self.flags.report.logprobs,
            require_sources=self.flags.sources.require_sources,
        )
        if now:
            workers.load(settings.worker_config(fingerprint, self.flags))
        return self._run_job(job, workers, journal, len(left), long)

    def _workers(self, stack: contextlib.ExitStack) -> Workers:
        """What answers: a process here, or actors of Ray."""
        run = self.flags.run
        if run.ray is None:
            workers = Workers(start_worker, timeout=run.timeout)
        else:
            from capt_local.batch.ray import OPEN_PORTS, cluster, ray_workers

            self.display.notes([OPEN_PORTS] if run.ray == "local" else [])
            ray = stack.enter_context(cluster(run.ray, run.ray_actors))
            threads = self.settings.load.threads or 1
            workers = ray_workers(ray, actors=run.ray_actors, timeout=run.timeout, threads=threads)
        stack.callback(workers.kill)
        return workers

    def _run_job(
        self, job: BatchJob, workers: Workers, journal: OutputJournal, left: int, long: list[int]
    ) -> tuple[int, Summary]:
        """Runs the job and reports its end; `long` are records that may be too long."""
        display = self.display
        progress = RunProgress(len(job.indices), before=len(journal.done))
        complete, failure = not job.indices, None

        def stop() -> bool:
            display.tick()
            return self.signals.requested

        def report(news: News) -> None:
            if news.ready is not None:
                display.notes(journal.set_loaded(news.ready["models"]))
            display.news(news)
            if long and all(self.source.ids[index] in journal.done for index in long):
                self._report_too_long(journal, long)
                long.clear()

        display.show(progress)
        try:
            if job.indices:
                complete = run_job(job, workers, progress, report=report, stop=stop)
        except Exception as error:  # no KeyboardInterrupt: a second Ctrl-C writes nothing more
            failure = error
        finally:
            display.clear()
        failed = sum(code != OK for code in journal.done.values())
        code = int(ExitCode.FAILED_RECORDS if failed else ExitCode.OK)
        if failure is not None:
            code = int(code_for(failure))
        elif not complete:
            code = self.signals.code or ExitCode.INTERRUPTED
        summary = progress.as_object() | {
            "left": left - progress.done,
            "failed_before": failed - progress.failed,
            "skipped": len(self.source.skipped),
            "exit_code": code,
        }
        try:
            journal.conclude(summary)
        except DiskFailed:
            if failure is None:
                self._report_end(summary, complete=complete)
                raise
        if failure is not None:
            raise failure
        self._report_end(summary, complete=complete)
        return code, summary

    def _report_too_long(self, journal: OutputJournal, long: list[int]) -> None:
        """Lists the records that do not fit into the context."""
        numbers = [
            str(self.source.line(index)[0])
            for index in long
            if journal.done[self.source.ids[index]] == ContextOverflow.code
        ]
        if numbers:
            more = f" and {len(numbers) - _SHOWN} more" if numbers[_SHOWN:] else ""
            note = f"too long for the context: input line {', '.join(numbers[:_SHOWN])}{more}. "
            note += "Nothing is cut; a larger --ctx-size in a new run takes them."
            self.display.notes([note])

    def _report_end(self, summary: Summary, *, complete: bool) -> None:
        self.display.note(summary_line(summary))
        if left := summary["left"]:
            again = " (without --force-new)" if self.flags.run.force_new else ""
            records = "1 record is" if left == 1 else f"{left} records are"
            self.display.note(
                f"{'' if complete else 'stopped; '}{records} left: the same command{again} goes on "
                f"with {'it' if left == 1 else 'them'}."
            )


class ProgressDisplay:
    """Reports a run on standard error; when its reader has gone, the run goes on without it."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._progress: RunProgress | None = None
        self._last = time.monotonic()
        self._gone = self._noticed = False

    def show(self, progress: RunProgress) -> None:
        """Shows from now on how far this is."""
        self._progress = progress

    def note(self, text: str) -> None:
        """Writes a line."""
        self._write(lambda: self._screen.note(text))

    def notes(self, texts: Iterable[str]) -> None:
        """Writes lines, each marked as a note."""
        self._write(lambda: self._screen.notes(texts))

    def fraction(self, label: str, share: float | None) -> None:
        """Redraws the progress line of a terminal, for what has no records."""
        self._write(lambda: self._screen.progress(label, share))

    def news(self, news: News) -> None:
        """Reports what happened."""
        if news.loading is not None:
            self.fraction(f"loading {news.loading[0]}", news.loading[1])
        if news.died:
            self.note(
                f"note: The worker process died: {news.died}. It is started again, and the "
                "records that it had are done again, one at a time."
            )
        if news.ready is not None and not self._noticed:
            self._noticed = True
            self.notes(news.ready["notices"])
        self.tick()

    def tick(self) -> None:
        """Shows how far the run is, if it is time: "412/1000, 35.2 tokens/s, 12 min left"."""
        progress, terminal = self._progress, self._screen.asides_on_terminal
        now = time.monotonic()
        wait = _REDRAW if terminal else _LINE_EVERY
        if progress is None or not progress.started or now - self._last < wait:
            return
        self._last = now
        done, total = progress.done, progress.total
        parts = [f"{done}/{total}", f"{progress.speed:.1f} tokens/s"]
        if done:
            parts.append(f"{readable_time(progress.seconds / done * (total - done))} left")
        if progress.failed:
            parts.append(f"{progress.failed} failed")
        label = ", ".join(parts)
        if terminal:
            self.fraction(label, done / total if total else 1.0)
        else:
            self.note(label)

    def clear(self) -> None:
        """Removes the progress line."""
        self._write(self._screen.clear_progress)

    def _write(self, write: Callable[[], None]) -> None:
        if self._gone:
            return
        try:
            write()
        except (OSError, ValueError):
            self._gone = True
            with contextlib.suppress(OSError, ValueError):
                drop_output(asides=True)


def summary_line(summary: Summary) -> str:
    """The summary of a run for people."""
    parts = [f"{summary['done']} done"]
    if failed := summary["failed"]:
        each = ", ".join(f"{code} {count}" for code, count in failed.items())
        parts.append(f"{sum(failed.values())} failed ({each})")
    if summary["already_done"]:
        # Why a run that did nothing may end with 6. Answers of a wrong form are not done again.
        before = summary["failed_before"]
        again = "(--retry-errors does those without an answer again)"
        hint = f", {before} of them failed {again}" if before else ""
        parts.append(f"{summary['already_done']} done before{hint}")
    if summary["skipped"]:
        parts.append(f"{summary['skipped']} left out (--skip-invalid)")
    if summary["left"]:
        parts.append(f"{summary['left']} left")
    tokens, speed = summary["answer_tokens"], summary["answer_tokens_per_second"]
    parts.append(f"{tokens} tokens ({speed:.1f}/s)")
    parts.append(readable_time(summary["seconds"]))
    return " | ".join(parts)
