"""`capt-local generate`: one answer to one prompt; `demo`: two answers about a fictitious note."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from capt_local.cli.exits import ExitCode, Interrupt
from capt_local.cli.files import (
    OutputFile,
    PromptInput,
    files_of,
    read_prompt,
    same_file,
    stdin_has_data,
)
from capt_local.cli.options import (
    AnswerFlags,
    BestOfFlags,
    HtmlFlags,
    ModelFlags,
    SampleFlags,
    SourceFlags,
    ViewFlags,
    flag,
    setting,
    top_logprobs_option,
)
from capt_local.cli.session import (
    answer_to,
    answer_with_progress,
    best_answer_to,
    find_bundle,
    generate_options,
    open_session,
    unusual_settings,
)
from capt_local.decoding.options import FinishReason, Method
from capt_local.errors import UsageError
from capt_local.grounding import missing_from
from capt_local.prompting.messages import Message
from capt_local.report.answers import DRAFT, summary_line, views
from capt_local.report.json import (
    REPORT_CANDIDATES,
    Answer,
    answer_object,
    dumps,
    warnings,
    with_sources,
)
from capt_local.report.terminal import Screen
from capt_local.report.views import Pane, Prose, Span

QUESTION = "What brought the patient to the hospital?"
_MAX_TOKENS = 128
_CLOSING = Prose.of(
    "Both answers come from the same prompt. The patient is invented, and the models are small: "
    "what they write is often wrong and is not medical advice. The note and the question were "
    "chosen since the difference is easy to see in them; how often the three are better, and how "
    "often not, was measured: docs/results.md. Your own text: capt-local generate -f note.txt "
    "--with-target --html report.html"
)


@dataclass(frozen=True, kw_only=True)
class GenerateFlags(ModelFlags, AnswerFlags, BestOfFlags, SourceFlags, HtmlFlags, ViewFlags):
    """The prompt, what is made of it, and where the answer goes."""

    prompt: str | None = flag(
        "-p --prompt TEXT",
        "The prompt; '-' reads standard input. Other accounts of this machine can see the "
        "arguments of a process: for patient text use -f or standard input.",
    )
    file: Path | None = flag(
        "-f --file PATH",
        "A file that holds the prompt: text, PDF, DOCX, ODT, RTF or HTML; with -p, that text, a "
        "blank line and the text of the file are the prompt.",
    )
    raw: bool = setting("--raw", "Continue the text as it is, without a template.", False)
    output: Path | None = flag("-o --output PATH", "Write the answer here (mode 0600).")
    json: bool = setting("--json", "Write a JSON object instead of the text.", False)
    top_logprobs: int = top_logprobs_option("--json")
    with_target: bool = flag(
        "--with-target", "Also generate the target's own answer to the same prompt.", False
    )


def generate(flags: GenerateFlags) -> int:
    """One answer to a prompt: the answer on standard output, everything else on standard error.

    Examples:
      capt-local generate -f note.txt -n 200
      capt-local generate -f note.txt -p "List the medicines."
      capt-local generate -f note.txt --best-of 8 --temp 1 --json
      cat note.txt | capt-local generate --json --top-logprobs 5 -o answer.json
      capt-local generate --raw --target big.gguf --expert clinical.gguf --base general.gguf < text
    """
    screen, raw = Screen.standard(flags.verbose), flags.raw
    # Everything that can be wrong is found before anything heavy is loaded.
    if flags.top_logprobs and not flags.json:
        raise UsageError("--top-logprobs goes with --json.")
    if flags.with_target and not (flags.html or flags.json):
        raise UsageError("--with-target goes with --html or --json.")
    given = read_prompt(
        flags.prompt, flags.file, system=flags.system_text(), raw=raw, encoding=flags.encoding
    )
    if flags.require_sources and given.of == "prompt":
        raise UsageError("--require-sources needs a note, with -f or on standard input.")
    if stdin_has_data():
        screen.notes(["standard input holds text, which is not read; -f - reads it."])
    bundle, template = find_bundle(flags), flags.template_source()
    top = max(flags.top_logprobs, REPORT_CANDIDATES if flags.html else 0)
    options = generate_options(bundle, flags, top)
    flags.check_best_of(options)
    screen.notes([*given.notices, *unusual_settings(options)])
    if flags.with_target and options.method in (Method.TARGET, Method.EXPERT, Method.BASE):
        raise UsageError("--with-target compares with the target, so it needs a method of three.")
    delivery = _AnswerWriter(screen, flags, given, files_of(bundle))
    schema = json.loads(options.structure.source) if options.structure else None

    with Interrupt() as interrupt:
        session = open_session(
            bundle, flags, screen, interrupt, wanted=options.method, template=template
        )
        with session.runtime:
            try:
                if flags.best_of > 1:
                    lacking = None
                    if flags.require_sources:
                        lacking = missing_from(given.source, schema, given.of)
                    answer = best_answer_to(
                        session, given.asked, options, flags, check=flags.verify, raw=raw,
                        unsupported=lacking,
                    )  # fmt: skip
                else:
                    answer = answer_to(
                        session,
                        given.asked,
                        options,
                        raw=raw,
                        show=screen.answer if delivery.live else None,
                        think=flags.thought_writer(screen) if delivery.live else None,
                        keep=delivery.keep,
                    )
            finally:
                # Also behind a part of an answer that an error ended: it gets its own line.
                if delivery.live:
                    screen.end_answer()
            if flags.with_target and answer.finish is not FinishReason.INTERRUPTED:
                own = dataclasses.replace(options, method=Method.TARGET, top=0)
                label = "the target alone"
                try:
                    alone = answer_with_progress(session, label, given.asked, own, raw=raw)
                except Exception:
                    delivery.write(answer)  # it is finished, whatever happens to the other
                    raise
                answer = dataclasses.replace(answer, alone=alone)
    answer = with_sources(answer, given.source, schema, given.of, require=flags.require_sources)
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


class _AnswerWriter:
    """Writes an answer where it should go, which is tried out when this is made."""

    def __init__(
        self, screen: Screen, flags: GenerateFlags, given: PromptInput, models: Iterable[Path]
    ) -> None:
        self._screen, self._flags = screen, flags
        asked = given.asked
        self._note = asked if isinstance(asked, str) else asked[-1].content
        self._offset = len(self._note) - len(given.source.text)
        self._file = self._page = None
        if flags.html and flags.output:
            same = flags.html.absolute() == flags.output.absolute()
            if same or same_file(flags.html, flags.output):
                raise UsageError("The answer (-o) and the report (--html) need two files.")
        inputs = [flags.file, flags.system_file, flags.json_schema, *models]
        if flags.output:
            self._file = OutputFile(flags.output, inputs=inputs, force=flags.force)
        if flags.html:
            name = "The report (--html)"
            self._page = OutputFile(flags.html, name, inputs=inputs, force=flags.force)
        # Whether the text is shown while it is made.
        chosen_later = flags.best_of > 1 or flags.require_sources
        self.live = not (flags.json or self._file or chosen_later)

    def keep(self, part: Answer) -> None:
        """Writes the partial answer after an error; if that fails too, it is only a note."""
        try:
            self.write(part)
        except UsageError as error:
            self._screen.notes([str(error)])

    def write(self, answer: Answer) -> None:
        """Writes what has not been shown yet, and the report; part of an answer replaces no file.

        Raises:
            UsageError: the disk is full or a folder has gone; the answer is on standard output.
        """
        partial = answer.finish in (FinishReason.INTERRUPTED, FinishReason.ERROR)
        try:
            if not self.live and not (partial and self._is_kept(self._file)):
                self._write_answer(answer)
        finally:
            if self._page is not None and not (partial and self._is_kept(self._page)):
                from capt_local.report.html import page

                self._page.write(page(answer, self._note, self._offset))

    def _is_kept(self, file: OutputFile | None) -> bool:
        """Whether a file exists, which a partial answer must not replace; a note says so."""
        reason = file.why_kept() if file is not None else None
        self._screen.notes([reason] if reason else [])
        return reason is not None

    def _write_answer(self, answer: Answer) -> None:
        if answer.finish is FinishReason.ABSTAINED and not self._flags.json:
            return  # nothing is answered; why stands on standard error
        text = answer.text.decode("utf-8", "replace")
        if self._flags.json:
            text = dumps(answer_object(answer, top_logprobs=self._flags.top_logprobs)) + "\n"
        try:
            if self._file is not None:
                self._file.write(text)
        except UsageError:
            self._screen.line(text.removesuffix("\n"))  # not lost with the disk
            raise
        if self._file is None:
            self._screen.line(text.removesuffix("\n"))


# The demo.


@dataclass(frozen=True, kw_only=True)
class DemoFlags(ModelFlags, SampleFlags, ViewFlags):
    """With which models the demo is played, and how."""


def demo(flags: DemoFlags) -> int:
    """A fictitious note and a question: the target's own answer, and that of all three models.

    With another bundle: the same by your own models.
    """
    screen, bundle = Screen.standard(flags.verbose), find_bundle(flags)
    if flags.max_tokens is None:
        flags = dataclasses.replace(flags, max_tokens=_MAX_TOKENS)
    options = generate_options(bundle, flags, REPORT_CANDIDATES, Method.CAPT)
    target = dataclasses.replace(options, method=Method.TARGET)
    screen.notes(unusual_settings(options))
    note = demo_note()
    asked = [Message("user", f"{note}\n\n{QUESTION}")]
    with Interrupt() as interrupt:
        session = open_session(bundle, flags, screen, interrupt)
        with session.runtime:
            title = "The note of a visit (fictitious, written for this demo)"
            screen.show(DRAFT, Pane(title, (Span(note),)), Prose.of(QUESTION, strong=True))
            alone = answer_with_progress(session, "the target alone", asked, target)
            if alone.finish is FinishReason.INTERRUPTED:
                return ExitCode.INTERRUPTED
            together = answer_with_progress(session, "all three together", asked, options)
    for answer in (alone, together):
        screen.detail(summary_line(answer))
    # The notices of the bundle have been shown when it was opened.
    own = together.notices[len(session.runtime.notices) :]
    screen.show(*views(dataclasses.replace(together, alone=alone, notices=own))[1:], _CLOSING)
    return ExitCode.INTERRUPTED if together.finish is FinishReason.INTERRUPTED else ExitCode.OK


def demo_note() -> str:
    """The fictitious note that is part of the package."""
    return (resources.files("capt_local") / "data" / "demo_note.txt").read_text("utf-8").strip()
