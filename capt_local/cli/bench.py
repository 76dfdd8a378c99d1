"""`capt-local bench`: all modes of answering side by side in one run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence

from capt_local.bundle.manifest import Bundle
from capt_local.cli.bench_flags import PROMPT_TOKENS, REPETITIONS, BenchFlags
from capt_local.cli.bench_report import Report, Workload, tell
from capt_local.cli.exits import ExitCode
from capt_local.cli.interrupt import Interrupt
from capt_local.cli.model_flags import ModelFlags
from capt_local.cli.options import SampleFlags, SideBySideFlags, ViewFlags
from capt_local.cli.session import Session, find_bundle, generate_options, open_session
from capt_local.decode.options import GenerateOptions, Method
from capt_local.engine.parameters import physical_cores
from capt_local.engine.plain import PlainLlama
from capt_local.errors import MemoryShortage, UsageError
from capt_local.evaluate.speed.batches import batch_costs
from capt_local.evaluate.speed.memory import memory_over, resident
from capt_local.evaluate.speed.modes import PlainMode, RuntimeMode
from capt_local.evaluate.speed.questions import Question, read_questions, standard_text
from capt_local.evaluate.speed.result import ALONE, PLAIN, STEPS, SpeedResult
from capt_local.evaluate.speed.taken import Mode
from capt_local.evaluate.speed.turns import take_turns
from capt_local.provenance import provenance
from capt_local.report.screen import Screen

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

      capt-local bench --prompts notes.jsonl --json > speed.json
    """
    screen = Screen.standard(view.verbose)
    if how.method is not None:
        raise UsageError("bench runs its modes side by side; --method has no place here.")
    what.check()
    questions = _given(what)
    bundle = find_bundle(model)
    if sample.max_tokens is None:
        sample = dataclasses.replace(sample, max_tokens=_TOKENS)
    wanted = chosen_modes(what.modes, bundle, generate_options(bundle, how, sample, 0))
    with Interrupt() as interrupt:
        session = open_session(bundle, model, screen, interrupt, wanted=_needed(wanted))
        with session.runtime:
            workload = Workload(
                questions=questions or _standard(session, what),
                invented=what.prompts is None,
                most=sample.max_tokens or _TOKENS,
            )
            found = _measure(session, workload.questions, wanted)
            report = _report(session, workload, found, wanted)
    if not any(each.tokens for each in found.figures.values()):
        raise UsageError("Every answer ended with its first token: nothing to measure.")
    tell(screen, report, json=what.json)
    return ExitCode.OK


def _report(
    session: Session,
    workload: Workload,
    found: SpeedResult,
    wanted: Mapping[str, GenerateOptions],
) -> Report:
    runtime, load = session.runtime, session.load
    first = wanted.get(STEPS) or next(iter(wanted.values()))
    return Report(
        result=found,
        workload=workload,
        threads=load.threads or physical_cores(),
        memory=(resident(), memory_over(runtime)),
        sizes={role: model.metadata.size for role, model in runtime.models.items()},
        provenance=provenance(runtime, first, load, session.date),
    )


def chosen_modes(
    names: str | None, bundle: Bundle, options: GenerateOptions
) -> dict[str, GenerateOptions]:
    """The modes that were asked for, or all that the bundle can do.

    Raises:
        UsageError: a mode is unknown or comes twice, or needs models that are not there.
    """
    known = {ALONE: dataclasses.replace(options, method=Method.TARGET)}
    if "expert" in bundle.models:
        known[STEPS] = dataclasses.replace(options, method=Method.CAPT)
    known[PLAIN] = known[ALONE]
    if names is None:
        if options.sample.temperature:  # the binding draws in its own way
            del known[PLAIN]
        return known
    found: dict[str, GenerateOptions] = {}
    for number, name in enumerate(names.split(","), 1):
        if name.strip() not in known:
            raise UsageError(
                f"Number {number} of --modes is none of this bundle; there are {', '.join(known)}."
            )
        if name.strip() in found:
            raise UsageError(f"--modes names {name.strip()} twice.")
        found[name.strip()] = known[name.strip()]
    return found


def _needed(wanted: Mapping[str, GenerateOptions]) -> Method:
    """The method whose models serve all modes."""
    alone = all(each.method is Method.TARGET for each in wanted.values())
    return Method.TARGET if alone else Method.CAPT


def _given(what: BenchFlags) -> list[Question]:
    """The prompts of the user, or none."""
    if what.prompts is None:
        return []
    return read_questions(
        what.prompts,
        "The file of --prompts",
        limit=what.limit,
        size=what.max_input_bytes,
        raw=what.raw,
    )


def _standard(session: Session, what: BenchFlags) -> list[Question]:
    """The same invented text again and again, so that the spread is that of the machine."""
    runtime, alone = session.runtime, GenerateOptions(method=Method.TARGET)

    def count(text: bytes) -> int:
        tokens = runtime.models["target"].tokenize(text, special=False)
        return len(tokens)

    longest = runtime.models["target"].context_limit
    wanted = what.prompt_tokens or PROMPT_TOKENS
    if wanted >= longest:
        raise UsageError(
            f"A prompt of {wanted} tokens leaves no room for an answer in a context of {longest}: "
            "give a larger --ctx-size or a smaller --prompt-tokens."
        )
    question = Question(standard_text(count, wanted), raw=True)
    runtime.generate(question.asked, alone, raw=True).end()
    return [question] * (what.repetitions or REPETITIONS)


def _measure(
    session: Session, questions: Sequence[Question], wanted: Mapping[str, GenerateOptions]
) -> SpeedResult:
    """All modes in turn, with a progress line meanwhile."""
    runtime, cancel = session.runtime, session.interrupt

    def told(part: float) -> None:
        cancel.check()
        session.screen.progress("measuring", part)

    with contextlib.ExitStack() as stack:
        stack.callback(session.screen.clear_progress)
        modes: dict[str, Mode] = {}
        for name, options in wanted.items():
            if name != PLAIN:
                modes[name] = RuntimeMode(runtime, options, cancel)
            elif (plain := _plain(session, stack, only=len(wanted) == 1)) is not None:
                modes[name] = PlainMode(plain, runtime, options, cancel)
        turns = take_turns(modes, questions, told)
        return SpeedResult.of(turns, modes, batch_costs(runtime, told))


def _plain(session: Session, stack: contextlib.ExitStack, *, only: bool) -> PlainLlama | None:
    """The target once more in the binding's own class; None, and said, where it does not fit."""
    runtime = session.runtime
    path = runtime.bundle.models["target"].path
    try:
        return stack.enter_context(PlainLlama(path, runtime.models["target"], session.load))
    except MemoryShortage as error:
        if only:
            raise
        session.screen.note(f"note: {PLAIN} is left out. {error}")
        return None
