"""`capt-local generate`: one answer to one prompt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from capt_local.cli.exits import ExitCode
from capt_local.cli.interrupt import Interrupt
from capt_local.cli.options import (
    MethodFlags,
    ModelFlags,
    OutputFlags,
    PromptFlags,
    SampleFlags,
    ViewFlags,
)
from capt_local.cli.output import OutputFile
from capt_local.cli.prompts import Asked, read_prompt
from capt_local.cli.session import Session, answer_to, find_bundle, generate_options, open_session
from capt_local.decode.options import GenerateOptions
from capt_local.decode.step import FinishReason
from capt_local.errors import UsageError
from capt_local.report.json import Answer, answer_object, dumps, warnings
from capt_local.report.screen import Screen
from capt_local.report.summary import summary_line


def generate(
    model: ModelFlags,
    prompt: PromptFlags,
    how: MethodFlags,
    sample: SampleFlags,
    output: OutputFlags,
    view: ViewFlags,
) -> int:
    """One answer to a prompt: the answer on standard output, everything else on standard error.

    Examples:
      capt-local generate -f note.txt -n 200

      cat note.txt | capt-local generate --json --top-logprobs 5 -o answer.json

      capt-local generate --raw --target big.gguf --expert clinical.gguf --base general.gguf < text
    """
    screen = Screen.standard(view.verbose)
    if output.top_logprobs and not output.json:
        raise UsageError("--top-logprobs goes with --json.")
    asked = read_prompt(prompt)
    bundle = find_bundle(model)
    options = generate_options(bundle, how, sample, output.top_logprobs)
    file = OutputFile(output.output) if output.output else None
    with Interrupt() as interrupt:
        session = open_session(bundle, model, screen, interrupt, wanted=options.method)
        with session.runtime:
            deliver = partial(_deliver, output=output, file=file, screen=screen)
            answer = _answer(session, asked, options, deliver, raw=prompt.raw, live=_live(output))
    deliver(answer)
    # The notices of the bundle have been told when it was opened.
    screen.notes(answer.notices[len(session.runtime.notices) :])
    screen.notes(warnings(answer))
    screen.note(summary_line(answer))
    interrupted = answer.finish is FinishReason.INTERRUPTED
    return ExitCode.INTERRUPTED if interrupted else ExitCode.OK


def _live(output: OutputFlags) -> bool:
    """Whether the text is shown while it is made."""
    return not output.json and output.output is None


def _answer(
    session: Session,
    asked: Asked,
    options: GenerateOptions,
    deliver: Callable[[Answer], None],
    *,
    raw: bool,
    live: bool,
) -> Answer:
    screen = session.screen

    def keep(part: Answer) -> None:
        try:
            deliver(part)
        except UsageError as error:  # what ended the answer is the error to tell
            screen.notes([str(error)])

    try:
        show = screen.answer if live else None
        return answer_to(session, asked, options, raw=raw, show=show, keep=keep)
    finally:
        # Also behind a part of an answer that an error ended: the error gets its own line.
        if live:
            screen.end_answer()


def _deliver(answer: Answer, output: OutputFlags, file: OutputFile | None, screen: Screen) -> None:
    """Writes what has not been shown yet."""
    if _live(output):
        return
    if output.json:
        text = dumps(answer_object(answer, top_logprobs=output.top_logprobs)) + "\n"
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
