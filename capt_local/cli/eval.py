"""`capt-local eval`: tasks under methods, side by side, with intervals."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capt_local.batch.run import readable_time
from capt_local.bundles.verify import file_digest
from capt_local.cli.exits import ExitCode
from capt_local.cli.files import OutputFile, files_of
from capt_local.cli.options import CombineFlags, ModelFlags, SampleFlags, ViewFlags, option
from capt_local.cli.session import (
    Session,
    find_bundle,
    generate_options,
    load_options,
    open_session,
    pinned_date,
)
from capt_local.cli.signals import Interrupt
from capt_local.decoding.options import GenerateOptions, Method, Speed
from capt_local.errors import UsageError
from capt_local.evaluate.intervals import Interval
from capt_local.evaluate.items import Kind
from capt_local.evaluate.journal import Journal, SampleLog
from capt_local.evaluate.metrics import metrics_of
from capt_local.evaluate.run import (
    LASTING,
    ChoiceBy,
    EvalPlan,
    Finished,
    Remaining,
    Result,
    TaskRun,
    run,
    shortened,
)
from capt_local.evaluate.styles import FewShotBy, Style, read_style, shows_examples
from capt_local.evaluate.summary import TARGET, Cell, TaskSummary, as_csv, as_object, summarise_task
from capt_local.evaluate.tasks import Task, read_examples, read_task
from capt_local.provenance import provenance
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Prose, Table, View
from capt_local.version import __version__

if TYPE_CHECKING:
    from capt_local.bundles.manifest import AdapterFile, Bundle, ModelFile
    from capt_local.llama.options import LoadOptions

_STYLE = "zero-shot"


@dataclass(frozen=True, slots=True)
class EvalFlags:
    """Which tasks and methods, how items are asked, and where results go."""

    more_tasks: Annotated[
        list[Path] | None, typer.Argument(metavar="[TASK]...", help="More tasks, as --task.")
    ] = None
    task: Annotated[
        list[Path] | None,
        option(
            "--task",
            metavar="FILE|DIR",
            help="A task: a JSON Lines file, or a folder with a task.toml; several are possible.",
        ),
    ] = None
    methods: Annotated[
        str | None,
        option(
            "--methods",
            metavar="A,B,...",
            help="Methods to compare. Default: target and capt.",
        ),
    ] = None
    against: Annotated[
        Method,
        option(
            "--against",
            metavar="METHOD",
            help="The method that intervals are against, which is always run. Default: target.",
        ),
    ] = Method.TARGET
    style: Annotated[
        str | None,
        option(
            "--style",
            metavar="NAME|FILE",
            help="How items are asked. Default: as the task says, else zero-shot.",
        ),
    ] = None
    shots: Annotated[
        int | None,
        option("--shots", metavar="K", min=0, help="Examples to show. Default: as the style says."),
    ] = None
    shots_file: Annotated[
        Path | None,
        option(
            "--shots-file",
            metavar="FILE|DIR",
            help="A task to take the examples from. Default: those that the task's folder names.",
        ),
    ] = None
    shots_by: Annotated[
        FewShotBy | None,
        option("--shots-by", metavar="fixed|nearest", help="Which examples. Default: fixed."),
    ] = None
    samples: Annotated[
        int | None,
        option("--samples", metavar="N", min=1, help="Answers to an item; what most say counts."),
    ] = None
    choice: Annotated[
        ChoiceBy | None,
        option(
            "--choice",
            metavar="likelihood|likelihood-per-byte|constrained|free",
            help="How a classification is answered. Default: likelihood, but free where the "
            "style reads the answer from a text.",
        ),
    ] = None
    raw: Annotated[bool, option("--raw", help="Ask with plain text, without chat templates.")] = (
        False
    )
    limit: Annotated[
        int | None,
        option("--limit", metavar="N", min=1, help="Only N items of each task, drawn by --seed."),
    ] = None
    max_input_bytes: Annotated[
        int | None,
        option("--max-input-bytes", metavar="N", min=1, help="Cut inputs to their first N bytes."),
    ] = None
    results: Annotated[
        Path | None,
        option(
            "--results",
            metavar="FILE",
            help="Keep every result here as it is done, and go on from there after a stop. Holds "
            "ids and figures, no text.",
        ),
    ] = None
    log_samples: Annotated[
        Path | None,
        option(
            "--log-samples",
            metavar="FILE",
            help="Write every answer here. This file holds patient text if the tasks do (mode "
            "0600).",
        ),
    ] = None
    csv: Annotated[
        Path | None, option("--csv", metavar="FILE", help="Write the table here as CSV.")
    ] = None
    json: Annotated[bool, option("--json", twin="JSON", help="Write a JSON object.")] = False

    @property
    def places(self) -> tuple[Path, ...]:
        """All tasks, in the order of the command line, as far as that can be known."""
        return (*(self.task or ()), *(self.more_tasks or ()))

    @property
    def names(self) -> list[str] | None:
        """What --methods names, known methods or not; None where it was not given."""
        return None if self.methods is None else [n.strip() for n in self.methods.split(",")]


def read_task_runs(what: EvalFlags, seed: int) -> tuple[TaskRun, ...]:
    """Reads tasks, styles and examples.

    Raises:
        UsageError: one of them is not as it should be, or they do not go together.
    """
    if not what.places:
        raise UsageError("There is no task. Give at least one with --task.")
    examples = None
    if what.shots_file is not None:
        whole = read_task(what.shots_file, what="The file of --shots-file")
        # Cut as the questions are, so that a question is still known among its examples.
        examples = shortened(whole, what.max_input_bytes)[0]
    runs = []
    for number, place in enumerate(what.places, 1):
        task = read_task(place, limit=what.limit, seed=seed, what=f"Task {number}")
        task, cut = shortened(task, what.max_input_bytes)
        own = partial(read_examples, place, what=f"Task {number}")
        style = None if task.kind is Kind.PERPLEXITY else _style(what, task, examples, own)
        runs.append(TaskRun(task, style, cut))
    _check_used(what, runs)
    return tuple(runs)


def _style(
    what: EvalFlags, task: Task, examples: Task | None, own: Callable[[], Task | None]
) -> Style:
    which = what.style or task.style or _STYLE
    wanted = shows_examples(which) if what.shots is None else what.shots > 0
    # The folder of a task may name examples, which need not be there for a style without any.
    if examples is None and wanted and (found := own()) is not None:
        examples = shortened(found, what.max_input_bytes)[0]
    return read_style(
        which,
        examples=examples,
        shots=what.shots,
        by=what.shots_by,
        samples=what.samples,
    )


def _check_used(what: EvalFlags, runs: Sequence[TaskRun]) -> None:
    """Refuses flags that would do nothing."""
    styles = [task_run.style for task_run in runs if task_run.style is not None]
    if what.shots_file is not None and not any(style.few_shot for style in styles):
        raise UsageError(
            "--shots-file is not used: give --shots K, or a style that shows examples."
        )
    if what.shots_by is not None and not any(style.few_shot for style in styles):
        raise UsageError("--shots-by needs examples: give --shots-file.")


def make_plan(
    what: EvalFlags,
    bundle: Bundle,
    how: CombineFlags,
    sample: SampleFlags,
    runs: Sequence[TaskRun],
) -> EvalPlan:
    """How answers are made.

    Raises:
        UsageError: a method is unknown or comes twice, or a value has no meaning.
    """
    methods = _methods(what.names, bundle, what.against)
    longer = dataclasses.replace(sample, temp=sample.temp or 0.0)
    plan = EvalPlan(
        methods={
            method.value: _stepwise(generate_options(bundle, how, longer, 0, method))
            for method in methods
        },
        choice=what.choice,
        raw=what.raw,
        max_tokens=sample.max_tokens,
        temperature=sample.temp,
    )
    plan.check(runs)
    return plan


def _stepwise(options: GenerateOptions) -> GenerateOptions:
    """Without drafts, so that a run that was stopped goes on to the last bit as it would have."""
    return dataclasses.replace(options, speed=Speed.EXACT_STEPS)


def _methods(given: list[str] | None, bundle: Bundle, against: Method) -> list[Method]:
    """The methods in the order of the command line, in front what they are held against.

    Raises:
        UsageError: a name is no method's, or comes twice.
    """
    if given is None:
        given = ["target", "capt"] if "expert" in bundle.models else ["target"]
    known = {method.value: method for method in Method}
    found: list[Method] = []
    for number, name in enumerate(given, 1):
        method = known.get(name)
        if method is None:
            raise UsageError(f"Number {number} of --methods is none; there are {', '.join(known)}.")
        if method in found:
            raise UsageError(f"--methods names {method} twice.")
        found.append(method)
    return found if against in found else [against, *found]


def settings(what: EvalFlags, runs: Sequence[TaskRun], plan: EvalPlan, seed: int) -> dict[str, Any]:
    """Tasks, styles and parameters by name; no text of prompts, items or stop strings."""
    return {
        "seed": seed,
        "limit": what.limit,
        "max_input_bytes": what.max_input_bytes,
        "choice": {
            task_run.task.name: str(plan.choice_of(task_run))
            for task_run in runs
            if task_run.task.kind is Kind.CLASSIFICATION
        },
        "raw": plan.raw,
        "max_tokens": plan.max_tokens,
        "temperature": plan.temperature,
        "tasks": {task_run.task.name: task_run.task.digest for task_run in runs},
        "styles": {
            task_run.task.name: _style_settings(task_run.style)
            for task_run in runs
            if task_run.style is not None
        },
        "methods": {name: _parameters(options) for name, options in plan.methods.items()},
    }


def fingerprint(
    chosen: Mapping[str, Any], bundle: Bundle, load: LoadOptions, date: str
) -> dict[str, Any]:
    """Everything that decides a result; where it is computed (threads, GPU) is left out.

    Args:
        chosen: see `settings`.
        bundle: whose files are read where no manifest names their digest.
        load: how models are loaded.
        date: what chat templates take for today.

    Raises:
        ModelError: a model file cannot be read.
    """
    from capt_local.llama.library import library

    build = library().build_info()
    return {
        "versions": {
            "capt_local": __version__,
            "llama_cpp_python": build.binding,
            "llama_cpp": build.llama_cpp,
        },
        "models": {str(role): _model(file) for role, file in bundle.models.items()},
        "context": load.context,
        "flash_attention": load.flash_attention,
        "kv_type": load.kv_type,
        "date": date,
        **chosen,
    }


def _model(file: ModelFile) -> dict[str, Any]:
    return {
        "sha256": file.sha256 or file_digest(file.path),
        **({"adapters": [_adapter(one) for one in file.adapters]} if file.adapters else {}),
        "style": str(file.style),
        "template": file.template,
        "template_sha256": file.template_sha256,
    }


def _adapter(file: AdapterFile) -> dict[str, Any]:
    digest = file.sha256 or file_digest(file.path)
    return {"sha256": digest, "scale": file.scale}


def _parameters(options: GenerateOptions) -> dict[str, Any]:
    """The parameters of a method; what the plan decides for all of them is told there."""
    parameters = dataclasses.asdict(options)
    for name in ("max_tokens", "top", "method"):
        del parameters[name]
    del parameters["sample"]["temperature"]
    # Stop strings may be words of a note.
    parameters["stop"] = [_digest(text) for text in options.stop]
    return parameters


def _style_settings(style: Style) -> dict[str, Any]:
    few_shot = style.few_shot
    return {
        "name": style.name,
        "samples": style.samples,
        "temperature": style.temperature,
        "max_tokens": style.max_tokens,
        "marker": style.marker,
        "texts": _digest(
            {kind: prompt.template for kind, prompt in style.prompts.items()},
            style.system,
            style.lead,
        ),
        "shots": None
        if few_shot is None
        else {
            "count": few_shot.count,
            "by": str(few_shot.by),
            "file": few_shot.examples.digest,
        },
    }


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Where finished items go besides the table, as far as that was asked for.

    Attributes:
        model: the flags, with the day that chat templates take for today: the whole run has one,
            also where it goes over midnight or is resumed on another day.
    """

    model: ModelFlags
    journal: Journal | None
    samples: SampleLog | None

    @property
    def results(self) -> list[Result]:
        """Those of earlier runs; what failed for a passing reason is tried again."""
        done = self.journal.done if self.journal else []
        return [result for result in done if not result.failed or result.failed in LASTING]

    def add(self, finished: Finished) -> None:
        """Keeps an item. The answers first: an item that has a result has its answers too."""
        if self.samples is not None:
            self.samples.append(finished)
        if self.journal is not None:
            self.journal.append(finished.result)


def open_table(what: EvalFlags, bundle: Bundle) -> OutputFile | None:
    """The file for the table, which takes the place of an earlier one.

    Raises:
        UsageError: it cannot be written, or it is a file that the run reads or keeps.
    """
    if what.csv is None:
        return None
    table = what.csv.resolve()
    style = Path(what.style) if what.style is not None else None
    others = (*what.places, what.shots_file, style, what.results, what.log_samples)
    for other in others:
        if other is None:
            continue
        place = other.resolve()
        inside = table.exists() and place.is_dir() and table.is_relative_to(place)
        same = table.exists() and place.exists() and table.samefile(place)
        if table == place or inside or same:
            raise UsageError(
                "The table (--csv) would replace a file that this run reads or keeps. Name "
                "another one."
            )
    return OutputFile(what.csv, "The table (--csv)", inputs=files_of(bundle))


def open_run_files(
    what: EvalFlags,
    bundle: Bundle,
    model: ModelFlags,
    chosen: Mapping[str, Any],
    stack: contextlib.ExitStack,
) -> RunFiles:
    """Opens the files that were asked for.

    Args:
        what: names them.
        bundle: that answers.
        model: how it is loaded.
        chosen: see `eval_settings.settings`.
        stack: closes them.

    Raises:
        UsageError: a file cannot be written, or is of another run.
        ModelError: a model without a digest cannot be read.
    """
    load, date = load_options(model, bundle), pinned_date(model)
    journal = stack.enter_context(Journal(what.results)) if what.results else None
    before = journal.fingerprint if journal else None
    today = str(before.get("date")) if before and date is None else None
    shown = date.isoformat() if date else today or datetime.date.today().isoformat()
    if journal is not None:
        journal.begin(fingerprint(chosen, bundle, load, shown))
    samples = None
    if what.log_samples is not None:
        if what.results is not None and what.log_samples.absolute() == what.results.absolute():
            raise UsageError("--results and --log-samples name the same file.")
        samples = stack.enter_context(SampleLog(what.log_samples, resumed=before is not None))
    return RunFiles(dataclasses.replace(model, date=shown), journal, samples)


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
    "Against the {against}: the difference, for bits per byte the ratio (x), and its 95 % interval "
    "(paired bootstrap over items)."
)


def views(summaries: Sequence[TaskSummary]) -> list[View]:
    """Figures in one table, a row for each task, method and figure; what they cost in another."""
    against = summaries[0].against
    figures = tuple(row for summary in summaries for row in _figure_rows(summary))
    costs = tuple(row for summary in summaries for row in _cost_rows(summary))
    return [
        Table(
            "Figures",
            _once(figures),
            ("task", "method", "figure", "value", f"against {against}"),
            right=(3, 4),
        ),
        Table(
            "Items and cost",
            _once(costs),
            ("task", "method", "done", "failed", "seconds", "tokens"),
            right=(2, 3, 4, 5),
        ),
        Prose.of(_LEGEND.format(against=against)),
    ]


def _once(rows: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    """The rows without the task and the method where they are those of the row above."""
    shown = []
    for row, above in zip(rows, (("", ""), *rows), strict=False):
        task = "" if row[0] == above[0] else row[0]
        method = "" if row[:2] == above[:2] else row[1]
        shown.append((task, method, *row[2:]))
    return tuple(shown)


def _figure_rows(summary: TaskSummary) -> Iterator[tuple[str, ...]]:
    for cell in summary.cells:
        for name in metrics_of(summary.task):
            digits = 4 if name == "bits_per_byte" else 3
            value = f"{cell.metrics[name]:.{digits}f}" if name in cell.metrics else "-"
            against = cell.intervals.get(name)
            shown = _against(against) if against else "-"
            yield summary.task.name, cell.method, _NAMES[name], value, shown


def _cost_rows(summary: TaskSummary) -> Iterator[tuple[str, ...]]:
    for cell in summary.cells:
        failed = sum(cell.failed.values())
        counts = (f"{cell.done}", f"{failed}", f"{cell.seconds:.1f}", f"{cell.tokens}")
        yield summary.task.name, cell.method, *counts


def _against(interval: Interval) -> str:
    if interval.ratio:
        return f"x{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def notes(summaries: Sequence[TaskSummary]) -> Iterator[str]:
    """What a reader of the table must know, in sentences."""
    for summary in summaries:
        name = summary.task.name
        if summary.cut:
            yield f"{name}: inputs that were cut to --max-input-bytes: {summary.cut}."
        for cell in summary.cells:
            yield from (f"{name}, {cell.method}: {t}" for t in _about(cell, summary.against))


def _about(cell: Cell, against: str) -> Iterator[str]:
    for reason, count in cell.failed.items():
        rest = f"its figures are over the other {cell.done}" if cell.done else "none was done"
        yield f"{count} failed ({reason}); {rest}."
    if cell.unanswered:
        yield f"{cell.unanswered} answers name no choice; they count as wrong."
    if cell.unfinished:
        yield f"{cell.unfinished} answers were ended by --max-tokens or the context."
    paired = [interval.items for interval in cell.intervals.values()]
    if paired and paired[0] < cell.done:
        yield f"intervals are over the {paired[0]} items that the {against} has done too."
    if cell.left:
        yield f"{cell.left} items were not run."


def eval(
    what: EvalFlags,
    model: ModelFlags,
    how: CombineFlags,
    sample: SampleFlags,
    view: ViewFlags,
) -> int:
    """Tasks under several methods in one table, with 95 % intervals of what they gain.

    Classifications have accuracy and macro-F1, generations ROUGE, prose bits per byte. Intervals
    are paired bootstraps over items, against the target alone or another method. An item that does
    not fit into the context is counted as failed; nothing is cut unless --max-input-bytes says so.
    Answers are as long as the task allows, at temperature 0, unless -n and --temp say otherwise.

    Examples:
      capt-local eval --task pubmedqa.jsonl --methods target,capt

      capt-local eval --task notes.jsonl --task mednli/ --results run.jsonl --csv table.csv

      capt-local eval --task rqe.jsonl --style few-shot --shots-file rqe-train.jsonl --limit 50
    """
    screen = Screen.standard(view.verbose)
    runs = read_task_runs(what, sample.seed)
    bundle = find_bundle(model)
    plan = make_plan(what, bundle, how, sample, runs)
    _check_bundle(bundle, plan)
    table_file = open_table(what, bundle)
    if what.names is not None and what.against not in what.names:
        screen.note(f"note: the {what.against} is run too, since intervals are against it.")
    chosen = settings(what, runs, plan, sample.seed)
    with Interrupt() as interrupt, contextlib.ExitStack() as stack:
        kept = open_run_files(what, bundle, model, chosen, stack)
        session = open_session(
            bundle, kept.model, screen, interrupt, wanted=_wanted(plan), scores=True
        )
        with session.runtime:
            asks = any(task_run.style is not None for task_run in runs)
            _check_served(session, plan, raw=plan.raw or not asks)
            results = _run(session, runs, plan, kept)
            about = _provenance(session, plan)
    told = partial(summarise_task, methods=list(plan.methods), results=results, seed=sample.seed)
    summaries = [told(task_run.task, against=what.against) for task_run in runs]
    interrupted = any(cell.left for one in summaries for cell in one.cells)
    found = as_object(summaries, chosen, about, interrupted=interrupted)
    json = dumps(found) if what.json else None
    _deliver(screen, summaries, json, table_file, interrupted=interrupted)
    if interrupted:
        kept_too = "The same command goes on from here." if what.results else "Nothing was kept."
        screen.note(f"interrupted. {kept_too}")
        return ExitCode.INTERRUPTED
    failed = any(cell.failed for one in summaries for cell in one.cells)
    return ExitCode.FAILED_RECORDS if failed else ExitCode.OK


def _check_bundle(bundle: Bundle, plan: EvalPlan) -> None:
    """Finds out before anything is loaded that there is no expert and base."""
    if "expert" not in bundle.models and set(plan.methods) != {TARGET}:
        raise UsageError(
            f"The bundle {bundle.id} has a target alone: --methods can only be target. "
            "Give --expert and --base for the others."
        )


def _check_served(session: Session, plan: EvalPlan, *, raw: bool) -> None:
    """Puts a word to every method, without computing, so that none fails in the middle.

    In the form in which items are asked: a model without a chat template is found out, too.
    """
    for name, options in plan.methods.items():
        made = session.runtime.generate("-", options, raw=raw, cancel=session.interrupt)
        session.screen.notes(f"{name}: {notice}" for notice in made.notices)
    session.runtime.forget()


def _wanted(plan: EvalPlan) -> Method:
    """The method whose models serve all of them."""
    return Method.TARGET if set(plan.methods) == {TARGET} else Method.CAPT


def _run(session: Session, runs: Sequence[TaskRun], plan: EvalPlan, kept: RunFiles) -> list[Result]:
    """All results, those of earlier runs among them; keeps each and tells how far it is."""
    results = kept.results
    remaining = Remaining(runs, plan.methods, results)
    if results:
        session.screen.note(f"{len(results)} of {remaining.total} results are there already.")
    done = {result.place for result in results}
    told: set[tuple[str, str, str]] = set()
    session.screen.progress(f"{remaining.done}/{remaining.total}", remaining.share)
    try:
        for finished in run(session.runtime, runs, plan, done=done, cancel=session.interrupt):
            kept.add(finished)
            results.append(finished.result)
            remaining.add(finished.result)
            _tell_problem(session.screen, finished, told)
            _tell_progress(session.screen, finished.result, remaining)
    finally:
        session.screen.clear_progress()
    return results


def _tell_progress(screen: Screen, last: Result, remaining: Remaining) -> None:
    left = readable_time(remaining.seconds or 0.0)
    label = f"{last.task} {remaining.done}/{remaining.total}, {left} left"
    screen.progress(label, remaining.share)


def _tell_problem(screen: Screen, finished: Finished, told: set[tuple[str, str, str]]) -> None:
    """Tells the first failure of each kind of a task under a method."""
    result = finished.result
    kind = result.task, result.method, result.failed
    if result.failed and kind not in told:
        told.add(kind)
        screen.note(f"note: {result.task}, {result.method}: an item failed. {finished.problem}")


def _provenance(session: Session, plan: EvalPlan) -> dict[str, Any]:
    """As for an answer; methods and their parameters are among the settings."""
    options = next(iter(plan.methods.values()))
    about = provenance(session.runtime, options, session.load, session.date)
    return {name: value for name, value in about.items() if name not in ("method", "parameters")}


def _deliver(
    screen: Screen,
    summaries: Sequence[TaskSummary],
    json: str | None,
    file: OutputFile | None,
    *,
    interrupted: bool,
) -> None:
    """The result on standard output first, so that a full disk does not take it along."""
    if json is not None:
        screen.line(json)
    else:
        screen.show(*views(summaries))
    screen.notes(notes(summaries))
    if file is None:
        return
    spared = file.spare() if interrupted else None
    if spared is None:
        file.write(as_csv(summaries))
    else:
        screen.notes([spared])
