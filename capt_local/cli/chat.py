"""`capt-local chat`: a conversation in the terminal, or a turn for each line of a pipe."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from capt_local.chat.commands import in_block, is_open, offers, understood
from capt_local.cli.exits import ExitCode, line_for, wants_traceback
from capt_local.cli.files import checked, decoded
from capt_local.cli.options import (
    AnswerFlags,
    EncodingFlags,
    MethodFlags,
    ModelFlags,
    SampleFlags,
    StructureFlags,
    SystemFlags,
    TemplateFlags,
    ViewFlags,
    flag,
    setting,
)
from capt_local.cli.session import doubts, find_bundle, generate_options, open_session
from capt_local.cli.signals import Leave, Signals
from capt_local.cli.talk import Talk, overflow_text
from capt_local.config import Feature
from capt_local.decoding.step import FinishReason
from capt_local.errors import Cancelled, CaptError, ContextOverflow, UsageError
from capt_local.line_file import LineFile
from capt_local.report.json import REPORTED
from capt_local.report.terminal import Screen, drop_output
from capt_local.report.views import Prose

if TYPE_CHECKING:
    from capt_local.report.input_line import InputLine

_BANNER = (
    "Drafts for review by a clinician; not for time-critical decisions. Nothing is written unless "
    "you ask for it. /help lists the commands, /why shows what the expert changed."
)


@dataclass(frozen=True, slots=True)
class ChatFlags:
    """What becomes of the conversation."""

    transcript: Path | None = flag(
        "--transcript PATH",
        "Write down every turn here at once (a new file, JSON Lines, mode 0600).",
        feature=Feature.TRANSCRIPTS,
    )
    idle_timeout: float | None = setting(
        "--idle-timeout MINUTES",
        "Forget the conversation when nothing is typed for so long. Default: never.",
    )

    def log(self) -> LineFile | None:
        """The new file of `--transcript`. Raises UsageError where it cannot be made."""
        name = "The --transcript file"
        if self.transcript is None:
            return None
        if os.path.lexists(self.transcript):
            raise UsageError(f"{name} is there already. Name a new one.")
        try:
            return LineFile(self.transcript, name)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "that is no file name"
            raise UsageError(f"{name} cannot be made: {reason}.") from None

    @property
    def idle_seconds(self) -> float | None:
        """`--idle-timeout` in seconds. Raises UsageError if it has no meaning."""
        minutes = self.idle_timeout
        if minutes is not None and not 0 < minutes < math.inf:
            raise UsageError("--idle-timeout takes minutes above 0.")
        return None if minutes is None else 60 * minutes


def chat(
    model: ModelFlags,
    talk: ChatFlags,
    system: SystemFlags,
    bytes_: EncodingFlags,
    template: TemplateFlags,
    how: MethodFlags,
    sample: SampleFlags,
    form: StructureFlags,
    thought: AnswerFlags,
    view: ViewFlags,
) -> int:
    """A conversation; /help in it lists the commands, /why shows what the expert changed.

    On a terminal: Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer, Ctrl-D leaves.

    Standard input that is no terminal: each line is one turn, and the lines between two lines of
    three double quotes are one; there are no commands. For one prompt use generate.

    Examples:
      capt-local chat --system "Answer in one sentence." --transcript visit.jsonl
      capt-local chat --idle-timeout 10 --alpha 0.5
    """
    screen = Screen.standard(view.verbose)
    text, idle = system.text(), talk.idle_seconds
    shape, source = form.structure(), template.source()
    bundle = find_bundle(model)
    options = thought.added(generate_options(bundle, how, sample, REPORTED), shape)
    screen.notes(doubts(options))
    with Signals() as signals:
        log = talk.log()
        try:
            session = open_session(
                bundle, model, screen, signals, wanted=options.method, template=source
            )
        except BaseException as error:
            if talk.transcript is not None:  # an empty one would be in the way the next time
                talk.transcript.unlink(missing_ok=True)
            if isinstance(error, Cancelled) and signals.code is not None:
                return signals.code
            raise
        with session.runtime:
            held = Talk(
                session, signals, options, log, text, thought.writer(screen), bytes_.encoding
            )
            try:
                return _converse(held, signals, idle)
            finally:
                held.close()


def _converse(talk: Talk, signals: Signals, idle: float | None) -> int:
    """Runs the conversation; a terminal that has gone is left without a word."""
    screen = talk.session.screen
    try:
        if sys.stdin is not None and sys.stdin.buffer.isatty() and screen.on_terminal:
            from capt_local.report.input_line import InputLine

            return _Terminal(talk, signals, InputLine(offers, is_open, idle), idle).run()
        if idle is not None:
            screen.note("--idle-timeout has no effect without a terminal.")
        for text in _texts(signals):
            try:
                answer = talk.ask(text)
            except Cancelled:
                return signals.code or ExitCode.INTERRUPTED
            if answer.finish is FinishReason.INTERRUPTED:
                return signals.code or ExitCode.INTERRUPTED
    except Leave:
        pass
    except (CaptError, OSError):
        if signals.code is None:
            raise
        drop_output()
    return signals.code or ExitCode.OK


class _Terminal:
    """The loop on a terminal: a line, an answer, a line."""

    def __init__(self, talk: Talk, signals: Signals, line: InputLine, idle: float | None) -> None:
        self._talk = talk
        self._screen = talk.session.screen
        self._signals = signals
        self._line = line
        self._idle = idle
        self._draft = ""
        self._pressed = False  # whether the last thing that happened was Ctrl-C

    def run(self) -> int:
        """Goes on until somebody leaves; returns the exit code."""
        runtime = self._talk.session.runtime
        context = min(model.context_limit for model in runtime.models.values())
        about = f"{runtime.bundle.id}: {' + '.join(runtime.models)}, context {context} tokens."
        self._screen.aside(Prose.of(f"{about} {_BANNER}"))
        while (code := self._turn()) is None:
            pass
        return code

    def _turn(self) -> int | None:
        """One line and what it asks for; the exit code when that is to leave."""
        from capt_local.report.input_line import Idle, Woken

        draft, self._draft = self._draft, ""
        # A Ctrl-C that stopped the answer before is over. One that comes as soon as the line is
        # sent stops what the line asks for, so it is not forgotten later.
        self._signals.again()
        try:
            with self._signals.waiting(self._line.wake):
                typed = self._line.ask(draft)
        except KeyboardInterrupt:
            # The first Ctrl-C clears the line, a second one leaves; so does one after an answer's.
            if self._pressed and self._line.typed in ("", draft):
                return ExitCode.INTERRUPTED
            self._pressed = True
            self._screen.note("Ctrl-C again or Ctrl-D leaves.")
            return None
        except EOFError:
            return self._signals.code or ExitCode.OK
        except Idle:
            self._talk.forget()
            self._line.forget()
            self._screen.note(
                f"Nothing was typed for {(self._idle or 0.0) / 60:g} minutes: the conversation and "
                "what stood on the line are forgotten, in all models. What the terminal shows is "
                "not."
            )
            return None
        except Woken:
            raise Leave from None
        self._pressed = False
        if not typed.strip() and not self._talk.notes:
            return None
        if self._does(typed):
            return ExitCode.OK
        return self._signals.code

    def _does(self, typed: str) -> bool:
        """Carries out a line; what fails is an error line, and the line stands under Up.

        Returns:
            Whether to leave.
        """
        before = self._talk.conversation
        try:
            meant = understood(checked(typed, "what you typed"))
            with self._line.quiet():
                if isinstance(meant, str):
                    answer = self._talk.ask(meant)
                    self._pressed = answer.finish is FinishReason.INTERRUPTED
                elif meant.name == "exit":
                    return True
                else:
                    self._talk.run(meant)
                    if meant.name == "clear":
                        self._line.forget()
        except BrokenPipeError:
            raise
        except Cancelled:
            if self._signals.code is not None:
                raise
            self._pressed = True
            # What was stopped by hand goes on from where it was.
            if self._talk.conversation is before:
                self._draft = typed
            self._screen.note("Stopped before the answer began; your text is on the line again.")
        except Exception as error:
            if wants_traceback() or self._signals.code is not None:
                raise
            # The refused text stands under Up: the error stays in sight above an empty line.
            text = overflow_text(error) if isinstance(error, ContextOverflow) else line_for(error)
            self._screen.error(text)
        return False


def _texts(signals: Signals) -> Iterator[str]:
    """The turns on standard input: lines, and blocks of lines between quotes."""
    if sys.stdin is None:
        raise UsageError("There is no standard input to read turns from.")
    block, number = "", 0
    while True:
        with signals.waiting():
            data = sys.stdin.buffer.readline()
        if not data:
            break
        number += 1
        text = decoded(data, f"Line {number} of standard input").rstrip("\r\n")
        block = f"{block}\n{text}" if block else text
        if is_open(block):
            continue
        inside, block = in_block(block), ""
        meant = text if inside is None else inside
        if meant.strip():
            yield meant
    if block:
        raise UsageError('Standard input ends inside a block: the closing """ is missing.')
