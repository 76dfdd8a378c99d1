"""`capt-local generate`: one answer to one prompt; `demo`: two answers about a fictitious note."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from capt_local.cli.exits import ExitCode, Interrupt
from capt_local.cli.files import (
    GivenPrompt,
    OutputFile,
    files_of,
    read_prompt,
    same_file,
    stdin_holds_text,
)
from capt_local.cli.options import (
    AnswerFlags,
    BestOfFlags,
    CombineFlags,
    EncodingFlags,
    HtmlFlags,
    MethodFlags,
    ModelFlags,
    SampleFlags,
    SourceFlags,
    StructureFlags,
    SystemFlags,
    TemplateFlags,
    TextFlags,
    ViewFlags,
    flag,
    setting,
    top_logprobs_option,
)
from capt_local.cli.session import (
    answer_to,
    best_answer_to,
    doubts,
    find_bundle,
    generate_options,
    hidden_answer_to,
    open_session,
)
from capt_local.decoding.options import FinishReason, Method
from capt_local.errors import UsageError
from capt_local.grounding import missing_from
from capt_local.prompting.messages import Message
from capt_local.report.answers import DRAFT, summary_line, views
from capt_local.report.json import REPORTED, Answer, answer_object, dumps, warnings, with_sources
from capt_local.report.terminal import Screen
from capt_local.report.views import Pane, Prose, Span


@dataclass(frozen=True, slots=True)
class GenerateFlags:
    """What is made of the prompt, and where the answer goes."""

    raw: bool = setting("--raw", "Continue the text as it is, without a template.", False)
    output: Path | None = flag("-o --output PATH", "Write the answer here (mode 0600).")
    json: bool = setting("--json", "Write a JSON object instead of the text.", False)
    top_logprobs: int = top_logprobs_option("--json")
    with_target: bool = flag(
        "--with-target", "The target's own answer to the same prompt beside it.", False
    )


def generate(
    model: ModelFlags,
    prompt: TextFlags,
    bytes_: EncodingFlags,
    system: SystemFlags,
    template: TemplateFlags,
    how: MethodFlags,
    sample: SampleFlags,
    several: BestOfFlags,
    form: StructureFlags,
    thought: AnswerFlags,
    sources: SourceFlags,
    output: GenerateFlags,
    report: HtmlFlags,
    view: ViewFlags,
) -> int:
    """One answer to a prompt: the answer on standard output, everything else on standard error.

    Examples:
      capt-local generate -f note.txt -n 200
      capt-local generate -f note.txt -p "List the medicines."
      capt-local generate -f note.txt --best-of 8 --temp 1 --json
      cat note.txt | capt-local generate --json --top-logprobs 5 -o answer.json
      capt-local generate --raw --target big.gguf --expert clinical.gguf --base general.gguf < text
    """
    screen = Screen.standard(view.verbose)
    # Everything that can be wrong is found before anything heavy is loaded.
    if output.top_logprobs and not output.json:
        raise UsageError("--top-logprobs goes with --json.")
    if output.with_target and not (report.html or output.json):
        raise UsageError("--with-target goes with --html or --json.")
    raw = output.raw
    given = read_prompt(
        prompt.prompt, prompt.file, system=system.text(), raw=raw, encoding=bytes_.encoding
    )
    asked = given.asked
    if sources.require_sources and given.of == "prompt":
        raise UsageError("--require-sources needs a note, with -f or on standard input.")
    if stdin_holds_text():
        screen.notes(["standard input holds text, which is not read; -f - reads it."])
    shape = form.structure()
    bundle = find_bundle(model)
    top = max(output.top_logprobs, REPORTED if report.html else 0)
    options = thought.added(generate_options(bundle, how, sample, top), shape)
    several.check(options)
    screen.notes([*given.notices, *doubts(options)])
    if output.with_target and options.method in (Method.TARGET, Method.EXPERT, Method.BASE):
        raise UsageError("--with-target compares with the target, so it needs a method of three.")
    inputs = [prompt.file, system.system_file, form.json_schema]
    delivery = _Delivery(screen, output, report, given, [*inputs, *files_of(bundle)])
    schema = json.loads(shape.source) if shape else None
    unsupported = None
    if several.best_of > 1 or sources.require_sources:
        delivery.live = False
    if several.best_of > 1 and sources.require_sources:
        unsupported = missing_from(given.source, schema, given.of)

    with Interrupt() as interrupt:
        session = open_session(
            bundle, model, screen, interrupt, wanted=options.method, template=template.source()
        )
        with session.runtime:
            try:
                if several.best_of > 1:
                    answer = best_answer_to(
                        session, asked, options, several, check=model.verify, raw=raw,
                        unsupported=unsupported,
                    )  # fmt: skip
                else:
                    answer = answer_to(
                        session,
                        asked,
                        options,
                        raw=raw,
                        show=screen.answer if delivery.live else None,
                        think=thought.writer(screen) if delivery.live else None,
                        keep=delivery.keep,
                    )
            finally:
                # Also behind a part of an answer that an error ended: it gets its own line.
                if delivery.live:
                    screen.end_answer()
            if output.with_target and answer.finish is not FinishReason.INTERRUPTED:
                own = dataclasses.replace(options, method=Method.TARGET, top=0)
                try:
                    alone = hidden_answer_to(session, "the target alone", asked, own, raw=raw)
                except Exception:
                    delivery.write(answer)  # it is finished, whatever happens to the other
                    raise
                answer = dataclasses.replace(answer, alone=alone)
    answer = with_sources(answer, given.source, schema, given.of, require=sources.require_sources)
    delivery.write(answer)
    # The notices of the bundle have been shown when it was opened.
    screen.notes(answer.notices[len(session.runtime.notices) :])
    screen.notes(warnings(answer))
    if answer.alone is not None and answer.alone.finish is FinishReason.INTERRUPTED:
        screen.notes(["the target's own answer was interrupted; this answer is whole."])
    screen.note(summary_line(answer))
    if answer.finish is FinishReason.INTERRUPTED:
        return ExitCode.INTERRUPTED
    failed = answer.finish is FinishReason.ABSTAINED or answer.structured is False
    return ExitCode.FAILED_RECORDS if failed else ExitCode.OK


class _Delivery:
    """Writes an answer where it should go; the places are tried out when this is made.

    Attributes:
        live: whether the text is shown while it is made.
    """

    def __init__(
        self,
        screen: Screen,
        output: GenerateFlags,
        report: HtmlFlags,
        given: GivenPrompt,
        inputs: list[Path | None],
    ) -> None:
        self._screen = screen
        self._output = output
        asked = given.asked
        self._note = asked if isinstance(asked, str) else asked[-1].content
        self._offset = len(self._note) - len(given.source.text)
        self._file = self._page = None
        if report.html and output.output:
            same = report.html.absolute() == output.output.absolute()
            if same or same_file(report.html, output.output):
                raise UsageError("The answer (-o) and the report (--html) need two files.")
        if output.output:
            self._file = OutputFile(output.output, inputs=inputs, force=report.force)
        if report.html:
            name = "The report (--html)"
            self._page = OutputFile(report.html, name, inputs=inputs, force=report.force)
        self.live = not output.json and self._file is None

    def keep(self, part: Answer) -> None:
        """Writes the part of an answer that an error ended; that error is the one to show."""
        try:
            self.write(part)
        except UsageError as error:
            self._screen.notes([str(error)])

    def write(self, answer: Answer) -> None:
        """Writes what has not been shown yet, and the report.

        An answer that Ctrl-C or an error ended replaces no file.

        Raises:
            UsageError: the disk is full or a folder has gone; the answer is on standard output.
        """
        partial = answer.finish in (FinishReason.INTERRUPTED, FinishReason.ERROR)
        try:
            if not self.live and not (partial and self._spared(self._file)):
                self._write_answer(answer)
        finally:
            if self._page is not None and not (partial and self._spared(self._page)):
                from capt_local.report.html import page

                self._page.write(page(answer, self._note, self._offset))

    def _spared(self, file: OutputFile | None) -> bool:
        """Whether an earlier file is there, which a part of an answer does not replace."""
        reason = file.spare() if file is not None else None
        self._screen.notes([reason] if reason else [])
        return reason is not None

    def _write_answer(self, answer: Answer) -> None:
        if answer.finish is FinishReason.ABSTAINED and not self._output.json:
            return  # nothing is answered; why stands on standard error
        text = answer.text.decode("utf-8", "replace")
        if self._output.json:
            text = dumps(answer_object(answer, top_logprobs=self._output.top_logprobs)) + "\n"
        try:
            if self._file is not None:
                self._file.write(text)
        except UsageError:
            self._screen.line(text.removesuffix("\n"))  # not lost with the disk
            raise
        if self._file is None:
            self._screen.line(text.removesuffix("\n"))


QUESTION = "What brought the patient to the hospital?"
_MAX_TOKENS = 128
_CLOSING = Prose.of(
    "Both answers come from the same prompt. The patient is invented, and the models are small: "
    "what they write is often wrong and is not medical advice. The note and the question were "
    "chosen since the difference is easy to see in them; how often the three are better, and how "
    "often not, was measured: docs/results.md. Your own text: capt-local generate -f note.txt "
    "--with-target --html report.html"
)


def demo(model: ModelFlags, how: CombineFlags, sample: SampleFlags, view: ViewFlags) -> int:
    """A fictitious note and a question: the target's own answer, and that of all three models.

    With another bundle: the same by your own models.
    """
    return play(Screen.standard(view.verbose), model, how, sample)


def play(screen: Screen, model: ModelFlags, how: CombineFlags, sample: SampleFlags) -> int:
    """Plays the demo on a screen and returns the exit code.

    Raises:
        UsageError, ModelError, MemoryShortage: see `open_session`.
    """
    bundle = find_bundle(model)
    if sample.max_tokens is None:
        sample = dataclasses.replace(sample, max_tokens=_MAX_TOKENS)
    options = generate_options(bundle, how, sample, REPORTED, Method.CAPT)
    target = dataclasses.replace(options, method=Method.TARGET)
    screen.notes(doubts(options))
    note = demo_note()
    asked = [Message("user", f"{note}\n\n{QUESTION}")]
    with Interrupt() as interrupt:
        session = open_session(bundle, model, screen, interrupt)
        with session.runtime:
            title = "The note of a visit (fictitious, written for this demo)"
            screen.show(DRAFT, Pane(title, (Span(note),)), Prose.of(QUESTION, strong=True))
            alone = hidden_answer_to(session, "the target alone", asked, target)
            if alone.finish is FinishReason.INTERRUPTED:
                return ExitCode.INTERRUPTED
            together = hidden_answer_to(session, "all three together", asked, options)
    for answer in (alone, together):
        screen.detail(summary_line(answer))
    # The notices of the bundle have been shown when it was opened.
    own = together.notices[len(session.runtime.notices) :]
    screen.show(*views(dataclasses.replace(together, alone=alone, notices=own))[1:], _CLOSING)
    return ExitCode.INTERRUPTED if together.finish is FinishReason.INTERRUPTED else ExitCode.OK


def demo_note() -> str:
    """The note that travels with the package, written for it about nobody."""
    return (resources.files("capt_local") / "data" / "demo_note.txt").read_text("utf-8").strip()
