"""`capt-local generate`: one answer to one prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from capt_local.cli.exits import ExitCode
from capt_local.cli.files import TOP, Asked, OutputFile, ReportFile, ReportFlags, read_prompt
from capt_local.cli.options import (
    MethodFlags,
    ModelFlags,
    OutputFlags,
    PromptFlags,
    SampleFlags,
    SpeedFlags,
    ViewFlags,
)
from capt_local.cli.session import Session, answer_to, find_bundle, generate_options, open_session
from capt_local.cli.signals import Interrupt
from capt_local.cli.structured import StructureFlags, structure
from capt_local.cli.thinking import Tell, ThoughtFlags, thinking
from capt_local.decoding.options import GenerateOptions, Method
from capt_local.decoding.step import FinishReason
from capt_local.errors import UsageError
from capt_local.report.answers import summary_line
from capt_local.report.json import Answer, answer_object, dumps, warnings
from capt_local.report.terminal import Screen


def generate(
    model: ModelFlags,
    prompt: PromptFlags,
    how: MethodFlags,
    sample: SampleFlags,
    pace: SpeedFlags,
    output: OutputFlags,
    form: StructureFlags,
    thought: ThoughtFlags,
    report: ReportFlags,
    view: ViewFlags,
) -> int:
    """One answer to a prompt: the answer on standard output, everything else on standard error.

    Examples:
      capt-local generate -f note.txt -n 200

      cat note.txt | capt-local generate --json --top-logprobs 5 -o answer.json

      capt-local generate --raw --target big.gguf --expert clinical.gguf --base general.gguf < text
    """
    screen = Screen.standard(view.verbose)
    _check(output, report)
    asked = read_prompt(prompt)
    shape = structure(form)
    bundle = find_bundle(model)
    top = max(output.top_logprobs, TOP if report.html else 0)
    options = pace.at(thought.added(generate_options(bundle, how, sample, top), shape))
    show, think = _shown(output, thought, screen)
    if report.with_target and options.method in (Method.TARGET, Method.EXPERT, Method.BASE):
        raise UsageError("--with-target compares with the target, so it needs a method of three.")
    deliver = _deliverer(output, report, screen)
    with Interrupt() as interrupt:
        session = open_session(bundle, model, screen, interrupt, wanted=options.method)
        with session.runtime:
            answer = _answer(session, asked, options, deliver, show, think, raw=prompt.raw)
            alone = None
            if report.with_target:
                alone = _target_alone(session, asked, options, answer, deliver)
    deliver(answer, alone)
    # The notices of the bundle have been told when it was opened.
    screen.notes(answer.notices[len(session.runtime.notices) :])
    screen.notes(warnings(answer))
    if alone is not None and alone.finish is FinishReason.INTERRUPTED:
        screen.notes(["the target's own answer was interrupted; this answer is whole."])
    screen.note(summary_line(answer))
    if answer.finish is FinishReason.INTERRUPTED:
        return ExitCode.INTERRUPTED
    # The text has been written; that it is no instance of its schema is said in a note.
    return ExitCode.FAILED_RECORDS if answer.structured is False else ExitCode.OK


def _deliverer(output: OutputFlags, report: ReportFlags, screen: Screen) -> Callable[..., None]:
    """What writes the answer where it should go; the files are there from now on."""
    file = OutputFile(output.output) if output.output else None
    page = ReportFile(report.html) if report.html else None
    return partial(_deliver, output=output, file=file, page=page, screen=screen)


def _check(output: OutputFlags, report: ReportFlags) -> None:
    """Refuses what does not go together, before anything is read."""
    if output.top_logprobs and not output.json:
        raise UsageError("--top-logprobs goes with --json.")
    if report.with_target and not (report.html or output.json):
        raise UsageError("--with-target goes with --html or --json.")
    if report.html and output.output and report.html.absolute() == output.output.absolute():
        raise UsageError("The answer (-o) and the report (--html) need two files.")


def _shown(
    output: OutputFlags, thought: ThoughtFlags, screen: Screen
) -> tuple[Tell | None, Tell | None]:
    """What shows the answer and the thoughts while they are made."""
    return (screen.answer, thinking(thought, screen)) if _live(output) else (None, None)


def _live(output: OutputFlags) -> bool:
    """Whether the text is shown while it is made."""
    return not output.json and output.output is None


def _answer(
    session: Session,
    asked: Asked,
    options: GenerateOptions,
    deliver: Callable[..., None],
    show: Tell | None,
    think: Tell | None,
    *,
    raw: bool,
) -> Answer:
    screen = session.screen

    def keep(part: Answer) -> None:
        try:
            deliver(part)
        except UsageError as error:  # what ended the answer is the error to tell
            screen.notes([str(error)])

    try:
        return answer_to(session, asked, options, raw=raw, show=show, think=think, keep=keep)
    finally:
        # Also behind a part of an answer that an error ended: the error gets its own line.
        if show is not None:
            screen.end_answer()


def _target_alone(
    session: Session,
    asked: Asked,
    options: GenerateOptions,
    answer: Answer,
    deliver: Callable[..., None],
) -> Answer | None:
    """The target's own answer; None if Ctrl-C has been pressed before."""
    if answer.finish is FinishReason.INTERRUPTED:
        return None
    own = dataclasses.replace(options, method=Method.TARGET, top=0)
    limit, done = own.max_tokens, 0

    def told(_: bytes) -> None:
        nonlocal done
        done += 1
        session.screen.progress("the target alone", done / limit)

    try:
        return answer_to(session, asked, own, raw=answer.raw, show=told)
    except Exception:
        deliver(answer)  # it is finished, whatever happens to the other
        raise
    finally:
        session.screen.clear_progress()


def _deliver(
    answer: Answer,
    alone: Answer | None = None,
    *,
    output: OutputFlags,
    file: OutputFile | None,
    page: ReportFile | None,
    screen: Screen,
) -> None:
    """Writes what has not been shown yet, and the report."""
    try:
        _deliver_text(answer, alone, output, file, screen)
    finally:
        if page is not None:
            page.write(answer, alone)


def _deliver_text(
    answer: Answer,
    alone: Answer | None,
    output: OutputFlags,
    file: OutputFile | None,
    screen: Screen,
) -> None:
    if _live(output):
        return
    if output.json:
        found = answer_object(answer, top_logprobs=output.top_logprobs, alone=alone)
        text = dumps(found) + "\n"
    else:
        text = answer.text.decode("utf-8", "replace")
    if file is None:
        screen.line(text.removesuffix("\n"))
        return
    try:
        file.write(text)
    except UsageError:
        # The answer is not lost with the disk.
        screen.line(text.removesuffix("\n"))
        raise
