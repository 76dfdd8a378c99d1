"""`capt-local eval`: tasks under methods, side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capt_local.cli.exits import ExitCode, Interrupt
from capt_local.cli.options import (
    BestOfFlags,
    JsonFlags,
    ModelFlags,
    SampleFlags,
    StructureFlags,
    ViewFlags,
    argument,
    flag,
)
from capt_local.cli.session import (
    Session,
    find_bundle,
    generate_options,
    load_options,
    open_session,
    pinned_date,
)
from capt_local.decoding.options import GenerateOptions, Method, Speed
from capt_local.errors import UsageError
from capt_local.evaluate import ChoiceBy
from capt_local.provenance import provenance
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Prose, Table, View
from capt_local.version import __version__

if TYPE_CHECKING:
    from capt_local.bundles.manifest import Bundle
    from capt_local.evaluate.metrics import MethodFigures, Result, TaskSummary
    from capt_local.evaluate.run import EvalPlan, ResultsFile, SampleLog
    from capt_local.evaluate.tasks import EvalTask
    from capt_local.llama.options import LoadOptions

TARGET = "target"
_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "exact_match": "exact",
    "token_f1": "token F1",
    "bits_per_byte": "bits per byte",
}
_LEGEND = (
    "In brackets 95 % intervals (bootstrap over items). Against the {against}: the difference, for "
    "bits per byte the ratio (x), paired."
)


@dataclass(frozen=True, kw_only=True)
class EvalFlags(JsonFlags, ModelFlags, SampleFlags, BestOfFlags, StructureFlags, ViewFlags):
    """Tasks, methods, prompt form and output files."""

    more_tasks: list[Path] | None = argument("[TASK]...", "More tasks, as --task.")
    task: list[Path] | None = flag(
        "--task FILE|DATASET=PATH",
        "A task: a JSON Lines file, or files of mednli-words, radqa or clip-questions "
        "(docs/tasks.md); several are possible.",
    )
    methods: str | None = flag("--methods A,B,...", "Methods to compare. Default: target and capt.")
    against: Method = flag(
        "--against METHOD",
        "The method that intervals are against, which is always run. Default: target.",
        Method.TARGET,
    )
    choice: ChoiceBy = flag(
        "--choice likelihood|free",
        "How a classification is answered. Default: likelihood.",
        ChoiceBy.LIKELIHOOD,
    )
    raw: bool = flag("--raw", "Ask with plain text, without chat templates.", False)
    limit: int | None = flag("--limit N", "Only N items of each task, drawn by --seed.", min=1)
    max_input_bytes: int | None = flag(
        "--max-input-bytes N", "Cut inputs to their first N bytes.", min=1
    )
    results: Path | None = flag(
        "--results FILE",
        "Add every result to this file as it is done, and go on from there after a stop. "
        "Holds ids and figures, no text.",
    )
    log_samples: Path | None = flag(
        "--log-samples FILE",
        "Write every answer here. This file holds patient text if the tasks do (mode 0600).",
    )

    @property
    def places(self) -> tuple[Path, ...]:
        """All tasks, in the order of the command line, as far as that can be known."""
        return (*(self.task or ()), *(self.more_tasks or ()))

    @property
    def names(self) -> list[str] | None:
        """What --methods names, known methods or not; None where it was not given."""
        return None if self.methods is None else [n.strip() for n in self.methods.split(",")]


def eval(flags: EvalFlags) -> int:
    """Tasks under several methods in one table, with 95 % intervals of the differences.

    Classifications have accuracy and macro-F1, generations ROUGE (or, with "measure": "fields" and
    --json-schema, each field of a JSON object), prose bits per byte. Intervals
    are paired bootstraps over items, against the target alone or another method. An item that does
    not fit into the context is counted as failed; nothing is cut unless --max-input-bytes says so.
    Answers are as long as the task allows, at temperature 0, unless -n and --temp say otherwise.

    Examples:
      capt-local eval --task pubmedqa.jsonl --methods target,capt

      capt-local eval --task notes.jsonl --task mednli-words=mli_test_v1.jsonl --results run.jsonl

      capt-local eval --task rqe.jsonl --methods target,expert,capt --best-of 8 --scorer scorer
    """
    # Imported here: the help needs none of it.
    from capt_local.evaluate.metrics import as_object, summarise_task
    from capt_local.evaluate.tasks import Kind, read_task, shortened
    from capt_local.rerank import open_scorer

    screen = Screen.standard(flags.verbose)
    if not flags.places:
        raise UsageError("There is no task. Give at least one with --task.")
    tasks = []
    for number, place in enumerate(flags.places, 1):
        task = read_task(place, limit=flags.limit, seed=flags.seed, what=f"Task {number}")
        tasks.append(shortened(task, flags.max_input_bytes))
    bundle = find_bundle(flags)
    plan = _plan(flags, bundle)
    plan.check(tasks)
    if flags.names is not None and flags.against not in flags.names:
        screen.note(f"note: the {flags.against} is run too, since intervals are against it.")
    wanted = Method.TARGET if set(plan.methods) == {TARGET} else Method.CAPT
    with Interrupt() as interrupt, contextlib.ExitStack() as stack:
        scorer = open_scorer(flags.scorer, bundle, flags.verify)
        if scorer is not None:
            plan = dataclasses.replace(plan, scorer=stack.enter_context(scorer))
        settings = _settings(flags, tasks, plan)
        flags, results_file, samples = _open_files(flags, bundle, settings, stack)
        session = open_session(bundle, flags, screen, interrupt, wanted=wanted, scores=True)
        with session.runtime:
            asks = any(task.kind is not Kind.PERPLEXITY for task in tasks)
            _check_methods(session, plan, raw=plan.raw or not asks)
            results = _run(session, tasks, plan, results_file, samples)
            options = next(iter(plan.methods.values()))
            about = provenance(session.runtime, options, session.load, session.date)
    about = {name: each for name, each in about.items() if name not in ("method", "parameters")}
    summaries = [
        summarise_task(task, list(plan.methods), results, seed=flags.seed, against=flags.against)
        for task in tasks
    ]
    counts = [one.counts for summary in summaries for one in summary.methods.values()]
    interrupted = any(one.left for one in counts)
    if flags.json:
        screen.line(dumps(as_object(summaries, settings, about, interrupted=interrupted)))
    else:
        screen.show(*_views(summaries))
    screen.notes(_notes(summaries))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1 << 10
    screen.note(f"memory of this process at most: {peak * unit / (1 << 20):,.0f} MiB")
    if interrupted:
        safe = "The same command goes on from here." if flags.results else "Nothing was saved."
        screen.note(f"interrupted. {safe}")
        return ExitCode.INTERRUPTED
    return ExitCode.FAILED_RECORDS if any(one.failed for one in counts) else ExitCode.OK


def _plan(flags: EvalFlags, bundle: Bundle) -> EvalPlan:
    """The plan of the run; with exact steps, so that a resumed run is the same to the last bit."""
    from capt_local.evaluate.run import BEST, EvalPlan

    methods, structure = _methods(flags.names, bundle, flags.against), flags.structure()

    def options(method: Method, temp: float) -> GenerateOptions:
        drawn = dataclasses.replace(flags, temp=temp)
        made = generate_options(bundle, drawn, method=method)
        return dataclasses.replace(made, speed=Speed.EXACT_STEPS, structure=structure)

    each = {method.value: options(method, flags.temp or 0.0) for method in methods}
    if flags.best_of != 1:
        each |= {f"{one}{BEST}": options(one, flags.temp or 1.0) for one in methods}
    flags.check_best_of(next(reversed(each.values())))
    if "expert" not in bundle.models and set(each) != {TARGET}:
        raise UsageError(
            f"The bundle {bundle.id} has a target alone: --methods can only be target. "
            "Give --expert and --base for the others."
        )
    return EvalPlan(
        methods=each,
        best_of=flags.best_of,
        choice=flags.choice,
        raw=flags.raw,
        max_tokens=flags.max_tokens,
    )


def _methods(names: list[str] | None, bundle: Bundle, against: Method) -> list[Method]:
    """The methods in the order of the command line; the reference is put in front if missing."""
    if names is None:
        names = ["target", "capt"] if "expert" in bundle.models else ["target"]
    known = {method.value: method for method in Method}
    found: list[Method] = []
    for number, name in enumerate(names, 1):
        method = known.get(name)
        if method is None:
            raise UsageError(f"Number {number} of --methods is none; there are {', '.join(known)}.")
        if method in found:
            raise UsageError(f"--methods names {method} twice.")
        found.append(method)
    return found if against in found else [against, *found]


def _settings(flags: EvalFlags, tasks: Sequence[EvalTask], plan: EvalPlan) -> dict[str, Any]:
    """Tasks and parameters by name; no text of prompts, items or stop strings."""
    from capt_local.batch.output import digest_of

    methods = {}
    for name, options in plan.methods.items():
        parameters = dataclasses.asdict(options)
        # Stop strings may be words of a note.
        parameters["stop"] = [digest_of(text) for text in options.stop]
        parameters["structure"] = options.structure.digest if options.structure else None
        left_out = ("max_tokens", "top", "method")
        methods[name] = {key: each for key, each in parameters.items() if key not in left_out}
    best = {"best_of": plan.best_of, "scorer": plan.scorer and plan.scorer.digest}
    return {
        "seed": flags.seed,
        "limit": flags.limit,
        "max_input_bytes": flags.max_input_bytes,
        "choice": str(plan.choice),
        "raw": plan.raw,
        "max_tokens": plan.max_tokens,
        **(best if plan.best_of > 1 else {}),
        "tasks": {task.name: task.digest for task in tasks},
        "methods": methods,
    }


def fingerprint(
    settings: Mapping[str, Any], bundle: Bundle, load: LoadOptions, date: str
) -> dict[str, Any]:
    """Everything that determines a result, except where it is computed (threads, GPU)."""
    from capt_local.batch.output import model_identity
    from capt_local.llama.library import library

    build = library().build_info()
    return {
        "versions": {
            "capt_local": __version__,
            "llama_cpp_python": build.binding,
            "llama_cpp": build.llama_cpp,
        },
        "models": {str(role): model_identity(file) for role, file in bundle.models.items()},
        "context": load.context,
        "flash_attention": load.flash_attention,
        "kv_type": load.kv_type,
        "date": date,
        **settings,
    }


def _open_files(
    flags: EvalFlags,
    bundle: Bundle,
    settings: Mapping[str, Any],
    stack: contextlib.ExitStack,
) -> tuple[EvalFlags, ResultsFile | None, SampleLog | None]:
    """Opens the files of --results and --log-samples; the flags come back with the run's date."""
    from capt_local.batch.output import differences
    from capt_local.evaluate.run import ResultsFile, SampleLog

    results = samples = before = None
    if flags.results is not None:
        results = stack.enter_context(contextlib.closing(ResultsFile(flags.results)))
        before = results.fingerprint
    # The whole run has one, also where it goes over midnight or is resumed on another day.
    pinned = pinned_date(flags)
    date = pinned.isoformat() if pinned else datetime.date.today().isoformat()
    if before and pinned is None:
        date = str(before.get("date"))
    if results is not None:
        load = load_options(flags, bundle)
        results.begin(fingerprint(settings, bundle, load, date), differences)
    if flags.log_samples is not None:
        if flags.results is not None and flags.log_samples.absolute() == flags.results.absolute():
            raise UsageError("--results and --log-samples name the same file.")
        log = SampleLog(flags.log_samples, resumed=before is not None)
        samples = stack.enter_context(contextlib.closing(log))
    return dataclasses.replace(flags, date=date), results, samples


def _check_methods(session: Session, plan: EvalPlan, *, raw: bool) -> None:
    """Puts a word to every method as items are asked, so that none fails in the middle."""
    for name, options in plan.methods.items():
        made = session.runtime.generate("-", options, raw=raw, cancel=session.interrupt)
        session.screen.notes(f"{name}: {notice}" for notice in made.notices)
    session.runtime.forget()


def _run(
    session: Session,
    tasks: Sequence[EvalTask],
    plan: EvalPlan,
    file: ResultsFile | None,
    samples: SampleLog | None,
) -> list[Result]:
    """All results, those of earlier runs included; saves each new one and shows progress."""
    from capt_local.batch.run import readable_time
    from capt_local.evaluate.run import PERMANENT, run

    # Transient failures are retried.
    earlier = file.done if file else []
    results = [one for one in earlier if not one.failed or one.failed in PERMANENT]
    total = sum(len(task.items) for task in tasks) * len(plan.methods)
    screen, reported = session.screen, set[tuple[str, str, str]]()
    if results:
        screen.note(f"{len(results)} of {total} results are there already.")
    done = {one.key for one in results}
    screen.progress(f"{len(results)}/{total}", len(results) / total)
    try:
        for finished in run(session.runtime, tasks, plan, done=done, cancel=session.interrupt):
            result = finished.result
            if samples is not None:  # first: an item that has a result has its answer too
                samples.append(finished)
            if file is not None:
                file.append(result)
            results.append(result)
            kind = result.task, result.method, result.failed
            if result.failed and kind not in reported:  # the first failure of each kind
                reported.add(kind)
                problem = f"an item failed. {finished.problem}"
                screen.note(f"note: {result.task}, {result.method}: {problem}")
            mean = sum(one.seconds for one in results) / len(results)
            left = readable_time(mean * (total - len(results)))
            label = f"{result.task} {len(results)}/{total}, {left} left"
            screen.progress(label, len(results) / total)
    finally:
        screen.clear_progress()
    return results


def _views(summaries: Sequence[TaskSummary]) -> list[View]:
    """Figures in one table, a row for each task, method and figure; what they cost in another."""
    from capt_local.evaluate.metrics import metrics_of

    against = summaries[0].against
    figures, costs = [], []
    for summary in summaries:
        name = summary.task.name
        for method, one in summary.methods.items():
            for metric in metrics_of(summary.task):
                digits = 4 if metric == "bits_per_byte" else 3
                value = "-"
                if spread := one.values.get(metric):
                    low, high = f"{spread.low:.{digits}f}", f"{spread.high:.{digits}f}"
                    value = f"{spread.estimate:.{digits}f} [{low}, {high}]"
                shown = "-"
                if found := one.intervals.get(metric):
                    mark, sign = ("x", "") if found.kind == "ratio" else ("", "+")
                    numbers = (found.estimate, found.low, found.high)
                    estimate, low, high = (f"{number:{sign}.3f}" for number in numbers)
                    shown = f"{mark}{estimate} [{low}, {high}]"
                figures.append((name, method, _NAMES.get(metric, metric), value, shown))
            failed = sum(one.counts.failed.values())
            cost = f"{one.counts.done}", f"{failed}", f"{one.seconds:.1f}", f"{one.tokens}"
            costs.append((name, method, *cost))
    headings = ("task", "method", "figure", "value", f"against {against}")
    counts = ("task", "method", "done", "failed", "seconds", "tokens")
    return [
        Table("Figures", _once(figures), headings, right=(3, 4)),
        Table("Items and cost", _once(costs), counts, right=(2, 3, 4, 5)),
        Prose.of(_LEGEND.format(against=against)),
    ]


def _once(rows: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """The rows without the task and the method where they are those of the row above."""
    shown = []
    for row, above in zip(rows, (("", ""), *rows), strict=False):
        task = "" if row[0] == above[0] else row[0]
        method = "" if row[:2] == above[:2] else row[1]
        shown.append((task, method, *row[2:]))
    return tuple(shown)


def _notes(summaries: Sequence[TaskSummary]) -> Iterator[str]:
    """Notes on failed, cut and unfinished items, below the table."""
    for summary in summaries:
        name = summary.task.name
        if cut := summary.task.cut:
            yield f"{name}: inputs that were cut to --max-input-bytes: {len(cut)}."
        for method, one in summary.methods.items():
            yield from (f"{name}, {method}: {note}" for note in _about(one, summary.against))


def _about(one: MethodFigures, against: str) -> Iterator[str]:
    counts = one.counts
    for reason, count in counts.failed.items():
        rest = f"its figures are over the other {counts.done}" if counts.done else "none was done"
        yield f"{count} failed ({reason}); {rest}."
    if counts.unanswered:
        yield f"{counts.unanswered} answers name no choice; they count as wrong."
    if counts.unfinished:
        yield f"{counts.unfinished} answers were ended by --max-tokens or the context."
    paired = [interval.items for interval in one.intervals.values()]
    if paired and paired[0] < counts.done:
        yield f"intervals are over the {paired[0]} items that the {against} has done too."
    if counts.left:
        yield f"{counts.left} items were not run."
