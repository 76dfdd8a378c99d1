"""`capt-local chat`: a conversation in the terminal, or a turn for each line of a pipe."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

from capt_local.chat.commands import in_block, is_open, offers, understood
from capt_local.chat.conversation import CANDIDATES
from capt_local.cli.chat_commands import Commands
from capt_local.cli.exits import ExitCode, line_for, wants_traceback
from capt_local.cli.files import checked, decoded
from capt_local.cli.options import (
    MethodFlags,
    ModelFlags,
    ReasoningFlags,
    SampleFlags,
    SpeedFlags,
    StructureFlags,
    SystemFlags,
    TemplateFlags,
    ViewFlags,
    option,
)
from capt_local.cli.session import doubts, find_bundle, generate_options, open_session
from capt_local.cli.signals import Leave, Signals
from capt_local.cli.talk import Talk, TranscriptFile, no_room
from capt_local.config import Feature
from capt_local.decoding.step import FinishReason
from capt_local.errors import Cancelled, CaptError, ContextOverflow, UsageError
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
    """How the conversation begins, and what becomes of it."""

    transcript: Annotated[
        Path | None,
        option(
            "--transcript",
            metavar="PATH",
            help="Write down every turn here at once (a new file, JSON Lines, mode 0600).",
        ),
        Feature.TRANSCRIPTS,
    ] = None
    idle_timeout: Annotated[
        float | None,
        option(
            "--idle-timeout",
            twin="IDLE_TIMEOUT",
            metavar="MINUTES",
            help="Forget the conversation when nothing is typed for so long. Default: never.",
        ),
    ] = None


def chat(
    model: ModelFlags,
    talk: ChatFlags,
    system_text: SystemFlags,
    template: TemplateFlags,
    how: MethodFlags,
    sample: SampleFlags,
    pace: SpeedFlags,
    form: StructureFlags,
    thought: ReasoningFlags,
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
    system = system_text.text()
    idle = _seconds(talk.idle_timeout)
    shape, source = form.structure(), template.source()
    bundle = find_bundle(model)
    options = pace.at(thought.added(generate_options(bundle, how, sample, CANDIDATES), shape))
    screen.notes(doubts(options))
    with Signals() as signals:
        log = TranscriptFile(talk.transcript) if talk.transcript is not None else None
        try:
            session = open_session(
                bundle, model, screen, signals, wanted=options.method, template=source
            )
        except BaseException as error:
            if log is not None:
                log.discard()  # an empty one would be in the way the next time
            if isinstance(error, Cancelled) and signals.code is not None:
                return signals.code
            raise
        with session.runtime:
            held = Talk(session, signals, options, log, system, thought.writer(screen))
            try:
                return _converse(held, signals, idle)
            finally:
                held.close()


def _converse(talk: Talk, signals: Signals, idle: float | None) -> int:
    """Runs the conversation; a terminal that has gone is left without a word."""
    try:
        if _is_terminal(talk.session.screen):
            from capt_local.report.input_line import InputLine

            line = InputLine(_offers, is_open, idle)
            return _Terminal(talk, signals, line, idle).run()
        if idle is not None:
            talk.session.screen.note("--idle-timeout has no effect without a terminal.")
        return _lines(talk, signals, sys.stdin.buffer if sys.stdin is not None else None)
    except Leave:
        pass
    except (CaptError, OSError):
        if signals.code is None:
            raise
        drop_output()
    return signals.code if signals.code is not None else ExitCode.OK


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
        self._commands = Commands(talk, line.forget, self._toggle_multi)

    def run(self) -> int:
        """Goes on until somebody leaves; returns the exit code."""
        self._greet()
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
            return self._pressed_at_the_prompt(draft)
        except EOFError:
            return self._signals.code or ExitCode.OK
        except Idle:
            self._forget_idle()
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
        """Carries out a line; what fails is said, and the line stands under Up.

        Returns:
            Whether to leave.
        """
        before = self._talk.conversation
        try:
            said = understood(checked(typed, "what you typed"))
            with self._line.quiet():
                if isinstance(said, str):
                    answer = self._talk.ask(said)
                    self._pressed = answer.finish is FinishReason.INTERRUPTED
                elif said.name == "exit":
                    return True
                else:
                    self._commands.run(said)
        except BrokenPipeError:
            raise
        except Exception as error:
            if wants_traceback() or self._signals.code is not None:
                raise
            self._fails(error)
            # What was refused stands under Up, so that the error stays in sight above an empty
            # line; what was stopped by hand goes on from where it was.
            if isinstance(error, Cancelled) and self._talk.conversation is before:
                self._draft = typed
        return False

    def _fails(self, error: Exception) -> None:
        if isinstance(error, ContextOverflow):
            self._screen.error(no_room(error))
        elif isinstance(error, Cancelled):
            self._pressed = True
            self._screen.note("Stopped before the answer began; your text is on the line again.")
        else:
            self._screen.error(line_for(error))

    def _pressed_at_the_prompt(self, draft: str) -> int | None:
        """The first Ctrl-C clears the line, a second one leaves; so does one after an answer's."""
        if self._pressed and self._line.typed in ("", draft):
            return ExitCode.INTERRUPTED
        self._pressed = True
        self._screen.note("Ctrl-C again or Ctrl-D leaves.")
        return None

    def _forget_idle(self) -> None:
        self._talk.forget()
        self._line.forget()
        minutes = (self._idle or 0.0) / 60
        self._screen.note(
            f"Nothing was typed for {minutes:g} minutes: the conversation and what stood on the "
            "line are forgotten, in all models. What the terminal shows is not."
        )

    def _toggle_multi(self) -> bool:
        self._line.multi = not self._line.multi
        return self._line.multi

    def _greet(self) -> None:
        runtime = self._talk.session.runtime
        context = min(model.context_limit for model in runtime.models.values())
        roles = " + ".join(runtime.models)
        about = f"{runtime.bundle.id}: {roles}, context {context} tokens."
        self._screen.aside(Prose.of(f"{about} {_BANNER}"))


def _lines(talk: Talk, signals: Signals, stdin: BinaryIO | None) -> int:
    """Each line of standard input is a turn; the first that fails ends it."""
    if stdin is None:
        raise UsageError("There is no standard input to read turns from.")
    for text in _texts(signals, stdin):
        try:
            answer = talk.ask(text)
        except Cancelled:
            return signals.code or ExitCode.INTERRUPTED
        if answer.finish is FinishReason.INTERRUPTED:
            return signals.code or ExitCode.INTERRUPTED
    return ExitCode.OK


def _texts(signals: Signals, stdin: BinaryIO) -> Iterator[str]:
    """The turns on standard input: lines, and blocks of lines between quotes."""
    block, number = "", 0
    while data := _next_line(signals, stdin):
        number += 1
        text = decoded(data, f"Line {number} of standard input").rstrip("\r\n")
        block = f"{block}\n{text}" if block else text
        if is_open(block):
            continue
        inside, block = in_block(block), ""
        said = text if inside is None else inside
        if said.strip():
            yield said
    if block:
        raise UsageError('Standard input ends inside a block: the closing """ is missing.')


def _next_line(signals: Signals, stdin: BinaryIO) -> bytes:
    with signals.waiting():
        return stdin.readline()


def _is_terminal(screen: Screen) -> bool:
    """Whether a person types and sees what happens."""
    return sys.stdin is not None and sys.stdin.buffer.isatty() and screen.on_terminal


def _offers(before: str) -> Iterator[tuple[str, int]]:
    for offer in offers(before):
        yield offer.text, offer.back


def _seconds(minutes: float | None) -> float | None:
    if minutes is None:
        return None
    if not 0 < minutes < math.inf:
        raise UsageError("--idle-timeout takes minutes above 0.")
    return 60 * minutes
