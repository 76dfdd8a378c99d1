"""`capt-local batch`: a run from its flags to its exit code, and what it reports meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from capt_local.batch.journal import LABEL, OutputJournal, read_manifest
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
from capt_local.batch.readers import check_input
from capt_local.batch.records import RecordParser, RecordTemplate
from capt_local.batch.supervisor import (
    WorkerConfig,
    WorkerEvent,
    WorkerProcess,
    Workers,
    pack,
    worker_command,
)
from capt_local.cli.exits import ExitCode, Signals, code_for, wants_traceback
from capt_local.cli.files import OutputFile, files_of, same_file
from capt_local.cli.options import (
    AskFlags,
    BestOfFlags,
    ModelFlags,
    SourceFlags,
    ViewFlags,
    argument,
    flag,
    setting,
    top_logprobs_option,
)
from capt_local.cli.session import (
    find_bundle,
    generate_options,
    load_options,
    pinned_date,
    unusual_settings,
)
from capt_local.config import Feature
from capt_local.documents import SUFFIXES
from capt_local.errors import Cancelled, ContextOverflow, UsageError
from capt_local.line_file import DiskFailed
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen, drop_output
from capt_local.strict_json import read_bytes

if TYPE_CHECKING:
    from capt_local.batch.run import BatchJob, RunProgress

_LARGEST = 1 << 16  # bytes of a template
_SHORTEST_TIMEOUT = 3  # seconds; a worker reports progress every second
_MOST_PARALLEL = 255  # sequences of one llama.cpp context, one reserved
_POLL = 0.1  # seconds until signals get their turn
_REDRAW, _LINE_EVERY = 0.1, 5.0  # seconds between two updates on a terminal, and elsewhere
_CONTEXT = 4096  # largest context in tokens if none is set
_SHOWN = 20  # numbers of records that a note lists
_CHARACTERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}  # of --delimiter
Summary = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BatchFlags(ModelFlags, AskFlags, BestOfFlags, SourceFlags, ViewFlags):
    """Which records are answered and how, where the answers go, and what is reported."""

    input: Path | None = argument("INPUT", "JSON Lines, a CSV file, or a folder of documents.")
    output: Path | None = flag(
        "-o --output PATH",
        "Write a line for each record here (mode 0600). The same command goes on with it.",
    )
    parallel: str = setting(
        "--parallel N|auto", "Records answered at once. Default: auto, by memory and cores.", "auto"
    )
    limit: int | None = flag("--limit N", "At most N records in this run.", min=1)
    retry_errors: bool = flag("--retry-errors", "Run failed records again.", False)
    force_new: bool = flag(
        "--force-new", "Move an existing output aside, and begin a new one.", False
    )
    record_timeout: int = setting(
        "--record-timeout SECONDS",
        "End a worker that reports no progress for so long, and fail the record that it "
        "hangs on. Default: 1800; 0 never does.",
        1800,
        min=0,
    )
    check: bool = flag(
        "--check", "Check flags and input, then exit: nothing is answered or written.", False
    )
    ray: str | None = flag(
        "--ray local|ADDRESS",
        "Answer on actors of Ray: on this machine, or on the cluster at ADDRESS (the extra "
        "'ray'). Records pass through Ray.",
        feature=Feature.NETWORK,
    )
    ray_actors: int | None = flag(
        "--ray-actors N",
        "Actors, each with models of its own. Default: one for each GPU, else for each machine.",
        min=1,
    )
    delimiter: Literal["comma", "semicolon", "tab", "pipe"] | None = setting(
        "--delimiter comma|semicolon|tab|pipe",
        "What separates the cells of CSV. Default: comma, and tab in *.tsv.",
    )
    template: Path | None = flag(
        "--template FILE",
        "Writes the prompt around the fields of a record: 'Summarise: {{ note }}'.",
    )
    id_field: str = setting(
        "--id-field NAME", "The field or column that identifies a record. Default: id.", "id"
    )
    document_field: str | None = flag(
        "--document-field NAME",
        "The field or column that names a document (PDF, DOCX, ..., relative to the input); "
        "its text takes the place of the name.",
    )
    raw: bool = setting("--raw", "Continue the texts as they are, without a template.", False)
    skip_invalid: bool = flag(
        "--skip-invalid",
        "Skip and list invalid records instead of refusing the input.",
        False,
    )
    json: bool = setting("--json", "Write the summary to standard output as JSON.", False)
    logprobs: bool = setting("--logprobs", "Write the log-probability of each token.", False)
    top_logprobs: int = top_logprobs_option("--logprobs")
    csv: Path | None = flag(
        "--csv FILE",
        "Write the answers here as a table: for each field its value and its source in the note.",
    )


def batch(flags: BatchFlags) -> int:
    """Answers each record of a file; running the same command again resumes where it stopped.

    A record is a line {"id", "prompt"} or {"id", "messages"}, a row of a CSV file, or a document
    of a folder. The whole input is checked before a model loads. The output has a line for each
    record, on the disk as soon as it is finished, errors included.

    Examples:
      capt-local batch notes.jsonl -o answers.jsonl -n 300

      capt-local batch notes.csv --template ask.txt --system-file rules.txt -o answers.jsonl
    """
    screen = Screen.standard(flags.verbose)
    run = BatchRun(flags, ProgressDisplay(screen))
    if flags.check:
        count, left_out = len(run.source), len(run.source.skipped)
        run.display.note(f"checked: {count} records. No model was loaded, and nothing written.")
        summary: Summary = {"records": count, "skipped": left_out}
        code = int(ExitCode.OK)
    else:
        with Signals() as signals, contextlib.ExitStack() as stack:
            try:
                code, summary = run.answer(signals, stack)
            except Cancelled:
                run.display.note("interrupted; nothing was written.")
                return signals.code or ExitCode.INTERRUPTED
        if run.table is not None:
            run.table.write(answers_table(run.output.read_bytes().splitlines()))
    if flags.json:
        screen.line(dumps(summary, indent=1))
    return code


def start_worker() -> WorkerProcess:
    """Starts a worker; its stderr may hold text, so it is shown only in debug mode."""
    return WorkerProcess(worker_command(), show=wants_traceback())


class BatchRun:
    """One run. What flags leave open is as it was when an earlier start of the same run began.

    Attributes:
        source: the records, checked.
        load: how models are loaded.
        date: today's date for chat templates: that of the run's first start.
        parallel: answers made at once.
        table: where the answers go as a table, too.

    Raises:
        CaptError: flags, input, output or models are invalid.
    """

    def __init__(self, flags: BatchFlags, display: ProgressDisplay) -> None:
        if flags.output is None:
            raise UsageError("There is no output. Name a file with -o.")
        if flags.input is None:
            raise UsageError("There is no input. Name a file or a folder.")
        if flags.check and flags.csv:
            raise UsageError("--csv does not go with --check, which writes nothing.")
        if flags.ray_actors is not None and flags.ray is None:
            raise UsageError("--ray-actors goes with --ray.")
        if flags.system is not None and os.path.isfile(flags.system):
            raise UsageError("--system names a file: give --system-file.")
        if flags.top_logprobs and not flags.logprobs:
            raise UsageError("--top-logprobs goes with --logprobs.")
        if 0 < flags.record_timeout < _SHORTEST_TIMEOUT:
            raise UsageError(
                f"--record-timeout is at least {_SHORTEST_TIMEOUT} seconds, or 0: a healthy worker "
                "may be silent for a while."
            )
        self.flags, self.display, self.output = flags, display, flags.output
        self.bundle = bundle = find_bundle(flags)
        self._check_places(flags.input)
        self.options = generate_options(bundle, flags, flags.top_logprobs)
        flags.check_best_of(self.options)
        # What else the fingerprint has of answers, as digests.
        self._others: dict[str, Any] = {"schema_sha256": None}
        if flags.json_schema is not None:
            schema = read_bytes(flags.json_schema, "The schema (--json-schema)").decode()
            self._others["schema_sha256"] = digest_of(schema)
        if flags.best_of > 1:
            # What is wrong with a scorer is found before a worker starts.
            from capt_local.rerank import open_scorer

            opened = open_scorer(flags.scorer, bundle, flags.verify)
            with opened or contextlib.nullcontext() as scorer:
                self._others |= {"best_of": flags.best_of, "scorer": scorer and scorer.digest}
        if flags.require_sources:
            self._others["require_sources"] = True
        self._choose_settings()
        display.notes(unusual_settings(self.options))
        self.table = OutputFile(flags.csv, "The table (--csv)") if flags.csv else None
        template = None
        if flags.template is not None:
            name = "The template (--template)"
            template = RecordTemplate(
                read_bytes(flags.template, name, largest=_LARGEST, pipes=True)
            )
        try:
            self.source = check_input(
                flags.input,
                parser=RecordParser(template, flags.system_text(), flags.id_field, flags.raw),
                delimiter=_CHARACTERS[flags.delimiter] if flags.delimiter else None,
                document_field=flags.document_field,
                encoding=flags.encoding,
                options=self.options,
                skip_invalid=flags.skip_invalid,
                progress=lambda share: display.fraction("checking the input", share),
            )
        finally:
            display.clear()
        display.notes(self.source.notices)

    def _check_places(self, notes: Path) -> None:
        """Refuses an output or table path that names another file of the run."""
        flags, output = self.flags, self.output
        if str(output) == "-":
            raise UsageError(f"{LABEL} is a file: a run could not be resumed on standard output.")
        if not output.parent.is_dir():
            raise UsageError(f"{LABEL} cannot be written: its folder does not exist.")
        files = (notes, flags.system_file, flags.template, flags.json_schema)
        used = [path for path in (*files, *files_of(self.bundle)) if path is not None]
        for name, path in ((LABEL, output), ("The table (--csv)", flags.csv)):
            if path is None:
                continue
            if any(same_file(path, each) or path.resolve() == each.resolve() for each in used):
                raise UsageError(f"{name} is a file that the run uses otherwise. Name another one.")
            if path.suffix.lower() in SUFFIXES and path.resolve().parent == notes.resolve():
                raise UsageError(
                    f"{name} would be read as a note: it ends in {path.suffix.lower()}, in the "
                    "folder of the notes. Name it otherwise, or another folder."
                )
            used += [path, manifest_path(path)]

    def _choose_settings(self) -> None:
        """How models are loaded, the date, and how many records are done at once."""
        from capt_local.batch.run import records_at_once
        from capt_local.llama.resources import physical_cores

        flags = self.flags
        load, pinned = load_options(flags, self.bundle), pinned_date(flags)
        if flags.ray is not None and load.threads is None:
            # Actors on other machines must compute with as many.
            here = flags.ray_actors or 1 if flags.ray == "local" else 1
            load = dataclasses.replace(load, threads=max(1, physical_cores() // here))
        before = None if flags.force_new else read_manifest(self.output)
        parallel: int | None = None
        text = flags.parallel
        if text == "auto":
            parallel = _earlier(before, "computing", "parallel", int)
        elif text.isascii() and text.isdecimal() and 1 <= int(text) <= _MOST_PARALLEL:
            parallel = int(text)
        else:
            raise UsageError(f"--parallel takes a number from 1 to {_MOST_PARALLEL}, or auto.")
        if parallel is None:
            cores = load.threads or physical_cores()
            parallel = records_at_once(self.bundle, self.options, load, cores=cores)
        day = str(pinned) if pinned else _earlier(before, "prompt", "date", str)
        self.date: str = day or datetime.date.today().isoformat()
        self.load, self.parallel = load, parallel

    def answer(self, signals: Signals, stack: contextlib.ExitStack) -> tuple[int, Summary]:
        """Answers all records that are left. Returns exit code and summary.

        Raises:
            Cancelled: it was stopped before it wrote anything.
            CaptError: the output is of another run, a model cannot be loaded, the disk is full...
        """
        from capt_local.batch.run import BatchJob

        flags, source = self.flags, self.source
        workers = self._workers(stack)
        while (facts := workers.hello(_POLL)) is None:
            if signals.requested:
                raise Cancelled("interrupted")
        fingerprint = self._fingerprint(facts)
        if signals.requested:
            raise Cancelled("interrupted")
        bundle = self.bundle
        about = {
            "id": bundle.id,
            "version": bundle.version,
            "licence": bundle.licence,
            "signer": bundle.signer.as_object() if bundle.signer else None,
        }
        journal = OutputJournal.open(
            self.output,
            fingerprint,
            records=source.lines(),
            input={**source.described(), "records": len(source), "sha256": source.digest},
            provenance={
                **facts,
                "bundle": about,
                "notices": list(bundle.notices),
                "loading": pack(self.load),
                "method": fingerprint["method"],
                "parameters": fingerprint["parameters"],
            },
            retry_errors=flags.retry_errors,
            force_new=flags.force_new,
        )
        stack.enter_context(journal)
        self.display.notes(journal.notices)
        left = [index for index, id in enumerate(source.ids) if id not in journal.done]
        now = left[: flags.limit]
        # A token has at least one byte. Texts that may be too long go first: those that are fail
        # without being computed, so they are reported before the long work.
        context = self.load.context or _CONTEXT
        long = [index for index in now if source.size(index) > context]
        now.sort(key=lambda index: source.size(index) <= context)
        job = BatchJob(
            source,
            journal,
            LineWriter(fingerprint),
            self.options,
            now,
            logprobs=flags.logprobs,
            require_sources=flags.require_sources,
        )
        if now:
            # Exactly the models of the fingerprint.
            models = {
                role: dataclasses.replace(file, sha256=fingerprint["models"][role]["sha256"])
                for role, file in bundle.models.items()
            }
            workers.load(
                WorkerConfig(
                    bundle=dataclasses.replace(bundle, models=models),
                    options=self.options,
                    load=self.load,
                    date=datetime.date.fromisoformat(self.date),
                    check=flags.verify,
                    raw=flags.raw,
                    parallel=self.parallel,
                    best_of=flags.best_of,
                    scorer=flags.scorer,
                )
            )
        return self._run_job(job, workers, journal, len(left), long, signals)

    def _workers(self, stack: contextlib.ExitStack) -> Workers:
        """The workers: a local process, or Ray actors."""
        flags, timeout = self.flags, self.flags.record_timeout or math.inf
        if flags.ray is None:
            workers = Workers(start_worker, timeout=timeout)
        else:
            from capt_local.batch.ray import OPEN_PORTS, cluster, ray_workers

            self.display.notes([OPEN_PORTS] if flags.ray == "local" else [])
            ray = stack.enter_context(cluster(flags.ray, flags.ray_actors))
            threads = self.load.threads or 1
            workers = ray_workers(ray, actors=flags.ray_actors, timeout=timeout, threads=threads)
        stack.callback(workers.kill)
        return workers

    def _fingerprint(self, facts: Mapping[str, Any]) -> Fingerprint:
        """That of the run; `facts` are what a worker has sent first."""
        from capt_local.llama.resources import physical_cores

        flags, load, packed = self.flags, self.load, pack(self.load)
        placed = ("devices", "tensor_split", "placements")
        return fingerprint_of(
            self.bundle,
            self.options,
            versions=facts["versions"],
            build=facts["build"],
            prompt={**self.source.described(), "date": self.date, **self._others},
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
            output={"logprobs": flags.logprobs},
        )

    def _run_job(
        self, job: BatchJob, workers: Workers, journal: OutputJournal, left: int, long: list[int],
        signals: Signals,
    ) -> tuple[int, Summary]:  # fmt: skip
        """Runs the job and reports its end; `long` are records that may be too long."""
        from capt_local.batch.run import RunProgress, run_job

        display = self.display
        progress = RunProgress(len(job.indices), before=len(journal.done))
        complete, failure = not job.indices, None

        def stop() -> bool:
            display.tick()
            return signals.requested

        def report(news: WorkerEvent) -> None:
            if news.ready is not None:
                display.notes(journal.set_loaded(news.ready["models"]))
            display.news(news)
            if long and all(self.source.ids[index] in journal.done for index in long):
                self._report_too_long(journal, long)
                long.clear()

        display.progress = progress
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
            code = signals.code or ExitCode.INTERRUPTED
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
            again = " (without --force-new)" if self.flags.force_new else ""
            records = "1 record is" if left == 1 else f"{left} records are"
            self.display.note(
                f"{'' if complete else 'stopped; '}{records} left: the same command{again} goes on "
                f"with {'it' if left == 1 else 'them'}."
            )


def _earlier(before: RunManifest | None, group: str, name: str, kind: type[Any]) -> Any:
    """A value of the fingerprint of an earlier start; None where there is none."""
    values = before.fingerprint.get(group) if before else None
    value = values.get(name) if isinstance(values, dict) else None
    return value if isinstance(value, kind) else None


class ProgressDisplay:
    """Shows progress on standard error; if that is closed, the run continues silently."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self.progress: RunProgress | None = None  # of the run that `tick` tells of
        self._last = time.monotonic()
        self._gone = self._noticed = False

    def note(self, text: str) -> None:
        """Writes a line."""
        self._write(lambda: self._screen.note(text))

    def notes(self, texts: Iterable[str]) -> None:
        """Writes lines, each marked as a note."""
        self._write(lambda: self._screen.notes(texts))

    def fraction(self, label: str, share: float | None) -> None:
        """Redraws the progress line on a terminal, for phases without records."""
        self._write(lambda: self._screen.progress(label, share))

    def news(self, news: WorkerEvent) -> None:
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
        """Updates the progress at intervals: "412/1000, 35.2 tokens/s, 12 min left"."""
        progress, terminal = self.progress, self._screen.err_on_terminal
        now = time.monotonic()
        wait = _REDRAW if terminal else _LINE_EVERY
        if progress is None or not progress.started or now - self._last < wait:
            return
        self._last = now
        done, total = progress.done, progress.total
        parts = [f"{done}/{total}", f"{progress.speed:.1f} tokens/s"]
        if done:
            from capt_local.batch.run import readable_time

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
    from capt_local.batch.run import readable_time

    parts = [f"{summary['done']} done"]
    if failed := summary["failed"]:
        each = ", ".join(f"{code} {count}" for code, count in failed.items())
        parts.append(f"{sum(failed.values())} failed ({each})")
    if summary["already_done"]:
        # Explains exit code 6 of a run that did nothing. Invalid answers are not retried.
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
