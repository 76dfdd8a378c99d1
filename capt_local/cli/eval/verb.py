"""`capt-local eval`: tasks under methods, side by side, with intervals."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from capt_local.cli.eval.files import Kept, open_kept, open_table
from capt_local.cli.eval.report import as_csv, as_object, notes, views
from capt_local.cli.eval.settings import settings
from capt_local.cli.eval.setup import EvalFlags, make_plan, read_exams
from capt_local.cli.exits import ExitCode
from capt_local.cli.files import OutputFile
from capt_local.cli.options import ModelFlags, SampleFlags, SideBySideFlags, ViewFlags
from capt_local.cli.session import Session, find_bundle, open_session
from capt_local.cli.signals import Interrupt
from capt_local.decoding.options import Method
from capt_local.errors import UsageError
from capt_local.evaluate.figures.summary import TARGET, TaskSummary, summary
from capt_local.evaluate.runs.exam import Exam, Plan
from capt_local.evaluate.runs.harness import Finished, run
from capt_local.evaluate.runs.remaining import Remaining, spoken_time
from capt_local.evaluate.runs.result import Result
from capt_local.provenance import provenance
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen

if TYPE_CHECKING:
    from capt_local.bundle.manifest import Bundle


def eval(
    what: EvalFlags,
    model: ModelFlags,
    how: SideBySideFlags,
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
    if how.method is not None:
        raise UsageError("eval compares methods: name them with --methods, not --method.")
    exams = read_exams(what, sample.seed)
    bundle = find_bundle(model)
    plan = make_plan(what, bundle, how, sample, exams)
    _check_bundle(bundle, plan)
    table_file = open_table(what)
    if what.names is not None and what.against not in what.names:
        screen.note(f"note: the {what.against} is run too, since intervals are against it.")
    chosen = settings(what, exams, plan, sample.seed)
    with Interrupt() as interrupt, contextlib.ExitStack() as stack:
        kept = open_kept(what, bundle, model, chosen, stack)
        session = open_session(bundle, kept.model, screen, interrupt, wanted=_wanted(plan))
        with session.runtime:
            asks = any(exam.style is not None for exam in exams)
            _check_served(session, plan, raw=plan.raw or not asks)
            results = _run(session, exams, plan, kept)
            about = _provenance(session, plan)
    told = partial(summary, methods=list(plan.methods), results=results, seed=sample.seed)
    summaries = [told(exam.task, against=what.against) for exam in exams]
    interrupted = any(cell.left for one in summaries for cell in one.cells)
    found = as_object(summaries, chosen, about, interrupted=interrupted)
    _deliver(screen, summaries, dumps(found) if what.json else None, table_file)
    if interrupted:
        kept_too = "The same command goes on from here." if what.results else "Nothing was kept."
        screen.note(f"interrupted. {kept_too}")
        return ExitCode.INTERRUPTED
    failed = any(cell.failed for one in summaries for cell in one.cells)
    return ExitCode.FAILED_RECORDS if failed else ExitCode.OK


def _check_bundle(bundle: Bundle, plan: Plan) -> None:
    """Finds out before anything is loaded that there is no expert and base."""
    if "expert" not in bundle.models and set(plan.methods) != {TARGET}:
        raise UsageError(
            f"The bundle {bundle.id} has a target alone: --methods can only be target. "
            "Give --expert and --base for the others."
        )


def _check_served(session: Session, plan: Plan, *, raw: bool) -> None:
    """Puts a word to every method, without computing, so that none fails in the middle.

    In the form in which items are asked: a model without a chat template is found out, too.
    """
    for name, options in plan.methods.items():
        made = session.runtime.generate("-", options, raw=raw, cancel=session.interrupt)
        session.screen.notes(f"{name}: {notice}" for notice in made.notices)
    session.runtime.forget()


def _wanted(plan: Plan) -> Method:
    """The method whose models serve all of them."""
    return Method.TARGET if set(plan.methods) == {TARGET} else Method.CAPT


def _run(session: Session, exams: Sequence[Exam], plan: Plan, kept: Kept) -> list[Result]:
    """All results, those of earlier runs among them; keeps each and tells how far it is."""
    results = kept.results
    remaining = Remaining(exams, plan.methods, results)
    if results:
        session.screen.note(f"{len(results)} of {remaining.total} results are there already.")
    done = {result.place for result in results}
    told: set[tuple[str, str, str]] = set()
    session.screen.progress(f"{remaining.done}/{remaining.total}", remaining.share)
    try:
        for finished in run(session.runtime, exams, plan, done=done, cancel=session.interrupt):
            kept.add(finished)
            results.append(finished.result)
            remaining.add(finished.result)
            _tell_problem(session.screen, finished, told)
            _tell_progress(session.screen, finished.result, remaining)
    finally:
        session.screen.clear_progress()
    return results


def _tell_progress(screen: Screen, last: Result, remaining: Remaining) -> None:
    left = spoken_time(remaining.seconds or 0.0)
    label = f"{last.task} {remaining.done}/{remaining.total}, {left} left"
    screen.progress(label, remaining.share)


def _tell_problem(screen: Screen, finished: Finished, told: set[tuple[str, str, str]]) -> None:
    """Tells the first failure of each kind of a task under a method."""
    result = finished.result
    kind = result.task, result.method, result.failed
    if result.failed and kind not in told:
        told.add(kind)
        screen.note(f"note: {result.task}, {result.method}: an item failed. {finished.problem}")


def _provenance(session: Session, plan: Plan) -> dict[str, Any]:
    """As for an answer; methods and their parameters are among the settings."""
    options = next(iter(plan.methods.values()))
    about = provenance(session.runtime, options, session.load, session.date)
    return {name: value for name, value in about.items() if name not in ("method", "parameters")}


def _deliver(
    screen: Screen, summaries: Sequence[TaskSummary], json: str | None, file: OutputFile | None
) -> None:
    """The result on standard output first, so that a full disk does not take it along."""
    if json is not None:
        screen.line(json)
    else:
        screen.show(*views(summaries))
    screen.notes(notes(summaries))
    if file is not None:
        file.write(as_csv(summaries))
