"""`capt-local bench`: all modes of answering side by side in one run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping

from capt_local.cli.bench.flags import BenchFlags
from capt_local.cli.bench.modes import chosen_modes, needed, open_modes
from capt_local.cli.bench.report import Report, tell
from capt_local.cli.bench.work import Workload, given_questions, given_trace, standard_questions
from capt_local.cli.exits import ExitCode
from capt_local.cli.files import OutputFile
from capt_local.cli.options import ModelFlags, SampleFlags, SideBySideFlags, ViewFlags
from capt_local.cli.session import Session, find_bundle, generate_options, open_session
from capt_local.cli.signals import Interrupt
from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.prompt_evidence import Memory
from capt_local.engine.threads import physical_cores
from capt_local.errors import ContextOverflow, UsageError
from capt_local.evaluate.speed.batches import batch_costs
from capt_local.evaluate.speed.memory import memory_over, resident
from capt_local.evaluate.speed.questions import Question
from capt_local.evaluate.speed.replay.files import as_lines
from capt_local.evaluate.speed.replay.run import ReplayMode, driven_questions, record
from capt_local.evaluate.speed.replay.trace import Trace
from capt_local.evaluate.speed.result import STEPS, SpeedResult
from capt_local.evaluate.speed.side import SideBySide
from capt_local.evaluate.speed.taken import Mode
from capt_local.evaluate.speed.turns import take_turns
from capt_local.provenance import provenance
from capt_local.report.terminal import Screen

_TOKENS = 128


def bench(
    what: BenchFlags, model: ModelFlags, how: SideBySideFlags, sample: SampleFlags, view: ViewFlags
) -> int:
    """Prompt and answer speed of every mode, their ratios, and what bounds them.

    Modes: target (alone), exact-steps (the three, step by step), auto and the sources of drafts,
    and llama: the target alone through llama-cpp-python. They take turns on the same prompts, so
    ratios hold on a machine whose speed drifts; see docs/bench.md.

    Examples:
      capt-local bench

      capt-local bench --prompts notes.jsonl --limit 20 --modes target,exact-steps,auto

      capt-local bench --prompts notes.jsonl --record trace.jsonl

      capt-local bench --target big.gguf --expert e.gguf --base b.gguf --replay trace.jsonl
    """
    screen = Screen.standard(view.verbose)
    if how.method is not None:
        raise UsageError("bench runs its modes side by side; --method has no place here.")
    what.check()
    questions = given_questions(what)
    file = OutputFile(what.record, "The trace (--record)") if what.record is not None else None
    bundle = find_bundle(model)
    most = _TOKENS if sample.max_tokens is None else sample.max_tokens
    options = generate_options(bundle, how, dataclasses.replace(sample, max_tokens=most), 0)
    trace = given_trace(what, most, cut=sample.max_tokens is not None)
    if trace is not None:
        options = dataclasses.replace(options, max_tokens=trace.longest)
    wanted = chosen_modes(what.modes, bundle, options)
    if (trace or file) and options.sample.temperature:
        raise UsageError("A trace is of greedy answers: leave out --temp.")
    with Interrupt() as interrupt:
        session = open_session(bundle, model, screen, interrupt, wanted=needed(wanted))
        with session.runtime:
            if file is not None:
                return _record(session, questions, options, what, file)
            if trace is not None:
                driven = driven_questions(trace, session.runtime)
                work = Workload(driven, trace.longest, trace=trace)
            else:
                asked = questions or standard_questions(session.runtime, what)
                work = Workload(asked, most, invented=not questions, parallel=what.parallel)
            found = _measure(session, work, wanted)
            report = _report(session, work, found, wanted)
    if not any(each.tokens for each in found.figures.values()):
        raise UsageError("Every answer ended with its first token: nothing to measure.")
    tell(screen, report, json=what.json)
    return ExitCode.OK


def _measure(
    session: Session, work: Workload, wanted: Mapping[str, GenerateOptions]
) -> SpeedResult:
    """All modes in turn, with a progress line meanwhile."""
    runtime, told = session.runtime, _progress(session, "measuring")
    with contextlib.ExitStack() as stack:
        stack.callback(session.screen.clear_progress)
        modes = open_modes(session, wanted, stack, _driving(session, work.trace))
        side = _side(session, work, wanted)
        turns = take_turns(modes, work.questions, told, side.add if side else lambda _: None)
        costs = batch_costs(runtime, turns.sizes(), told)
        return SpeedResult.of(turns, modes, costs, chosen=work.trace is None, side=side)


def _side(
    session: Session, work: Workload, wanted: Mapping[str, GenerateOptions]
) -> SideBySide | None:
    """What answers side by side, if that was asked for.

    Raises:
        UsageError: there are fewer prompts.
    """
    if work.parallel is None:
        return None
    if len(work.questions) < work.parallel:
        raise UsageError(f"--parallel {work.parallel} needs as many prompts, or more.")
    options = wanted.get(STEPS) or next(iter(wanted.values()))
    return SideBySide(session.runtime, options, work.parallel, session.interrupt)


def _driving(session: Session, trace: Trace | None) -> Callable[[GenerateOptions], Mode] | None:
    """Makes modes that a trace drives; None without one."""
    if trace is None:
        return None
    offered, memory, cancel = trace.sources, Memory(), session.interrupt
    return lambda options: ReplayMode(session.runtime, options, offered, memory, cancel)


def _record(
    session: Session,
    questions: list[Question],
    options: GenerateOptions,
    what: BenchFlags,
    file: OutputFile,
) -> int:
    """Writes a trace instead of measuring: at every token all sources of drafts are asked."""
    questions = questions or standard_questions(session.runtime, what)[:1]
    told, answers, left = _progress(session, "recording"), [], 0
    try:
        for done, question in enumerate(questions):
            told(done / len(questions))
            try:
                answers.append(record(session.runtime, question, options, session.interrupt))
            except ContextOverflow:
                left += 1
    finally:
        session.screen.clear_progress()
    if not answers:
        raise UsageError("No prompt fits into the context; a larger --ctx-size may help.")
    trace = Trace("recorded", tuple(answers))
    file.write(as_lines(trace))
    session.screen.note(
        f"{len(answers)} answers of {trace.places} tokens recorded"
        + (f"; {left} prompts do not fit into the context and were left out." if left else ".")
    )
    return ExitCode.OK


def _progress(session: Session, label: str) -> Callable[[float], None]:
    """Tells how far it is; ends everything after Ctrl-C."""

    def told(part: float) -> None:
        session.interrupt.check()
        session.screen.progress(label, part)

    return told


def _report(
    session: Session,
    work: Workload,
    found: SpeedResult,
    wanted: Mapping[str, GenerateOptions],
) -> Report:
    runtime, load = session.runtime, session.load
    first = wanted.get(STEPS) or next(iter(wanted.values()))
    lanes = sum(each.memory for each in found.side.values())
    return Report(
        result=found,
        work=work,
        threads=load.threads or physical_cores(),
        memory=(resident(), memory_over(runtime, lanes)),
        sizes={role: model.metadata.size for role, model in runtime.models.items()},
        provenance=provenance(runtime, first, load, session.date),
    )
