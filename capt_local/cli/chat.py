"""`capt-local chat`: a conversation in the terminal: input loop, commands, answers.

Commands show their results on standard error.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from capt_local.chat import (
    COMMANDS,
    SETTINGS,
    Call,
    Conversation,
    Turn,
    changed,
    differences,
    offers,
    path_of,
    transcript,
    understood,
    with_notes,
)
from capt_local.cli.exits import ExitCode, Leave, Signals, line_for, wants_traceback
from capt_local.cli.files import OutputFile, checked
from capt_local.cli.options import AnswerFlags, ModelFlags, ViewFlags, setting
from capt_local.cli.session import (
    Session,
    Writer,
    answer_to,
    find_bundle,
    generate_options,
    open_session,
    unusual_settings,
)
from capt_local.config import Feature, read_site
from capt_local.decoding.options import FinishReason, GenerateOptions
from capt_local.documents import Document, read_path
from capt_local.errors import Cancelled, CaptError, ContextOverflow, UsageError
from capt_local.prompting.messages import Message
from capt_local.provenance import provenance
from capt_local.report.answers import clipped, context_line, counted, pane, short_line, views
from capt_local.report.json import REPORT_CANDIDATES, Answer, sources_line, warnings, with_sources
from capt_local.report.terminal import Screen, drop_output
from capt_local.report.views import Beside, Pane, Prose, Span, Table, visible

if TYPE_CHECKING:
    from capt_local.report.input_line import InputLine

# Placeholder for the next question in calls of `Runtime.keep` between turns.
_ANYTHING = "."
_CELL = 40
_BANNER = (
    "Drafts for review by a clinician; not for time-critical decisions. Nothing is written unless "
    "you ask for it. /help lists the commands, /why shows what the expert changed."
)


@dataclass(frozen=True, kw_only=True)
class ChatFlags(ModelFlags, AnswerFlags, ViewFlags):
    """With which models, how they answer, and how long the conversation stays."""

    idle_timeout: float | None = setting(
        "--idle-timeout MINUTES",
        "Forget the conversation when nothing is typed for so long. Default: never.",
    )


def chat(flags: ChatFlags) -> int:
    """A conversation; /help in it lists the commands, /why shows what the expert changed.

    Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer, Ctrl-D leaves.

    Examples:
      capt-local chat --system "Answer in one sentence."
      capt-local chat --idle-timeout 10 --alpha 0.5
    """
    screen = Screen.standard(flags.verbose)
    if sys.stdin is None or not (sys.stdin.buffer.isatty() and screen.on_terminal):
        raise UsageError(
            "chat needs a terminal. For text of a file or a pipe use generate, for many batch."
        )
    if flags.idle_timeout is not None and not 0 < flags.idle_timeout < math.inf:
        raise UsageError("--idle-timeout takes minutes above 0.")
    system, template, bundle = flags.system_text(), flags.template_source(), find_bundle(flags)
    options = generate_options(bundle, flags, REPORT_CANDIDATES)
    screen.notes(unusual_settings(options))
    with Signals() as signals:
        try:
            session = open_session(
                bundle, flags, screen, signals, wanted=options.method, template=template
            )
        except Cancelled:
            if signals.code is None:
                raise
            return signals.code
        with session.runtime:
            think = flags.thought_writer(screen)
            talk = ChatSession(session, signals, options, system, think, flags.encoding)
            idle = None if flags.idle_timeout is None else 60 * flags.idle_timeout
            from capt_local.report.input_line import InputLine

            try:
                return _Terminal(talk, signals, InputLine(offers, idle), idle).run()
            except Leave:
                pass
            except (CaptError, OSError):
                if signals.code is None:
                    raise
                drop_output()  # a terminal that has gone is left without a word
            return signals.code or ExitCode.OK


class _Terminal:
    """The loop on a terminal: a line, an answer, a line."""

    def __init__(
        self, talk: ChatSession, signals: Signals, line: InputLine, idle: float | None
    ) -> None:
        self._talk = talk
        self._screen = talk.session.screen
        self._signals = signals
        self._line = line
        self._idle = idle
        self._draft = ""
        self._pressed = False  # whether the last thing that happened was Ctrl-C

    def run(self) -> int:
        """Runs turns until the user leaves; returns the exit code."""
        runtime = self._talk.session.runtime
        context = min(model.context_limit for model in runtime.models.values())
        about = f"{runtime.bundle.id}: {' + '.join(runtime.models)}, context {context} tokens."
        self._screen.aside(Prose.of(f"{about} {_BANNER}"))
        while (code := self._turn()) is None:
            pass
        return code

    def _turn(self) -> int | None:
        """Reads and executes one line; returns the exit code if the user leaves, else None."""
        from capt_local.report.input_line import Idle, Woken

        draft, self._draft = self._draft, ""
        # Reset the Ctrl-C of the last answer here and not later: one that arrives as soon as the
        # line is sent must stop the new answer.
        self._signals.again()
        try:
            with self._signals.waiting(self._line.wake):
                typed = self._line.ask(draft)
        except KeyboardInterrupt:
            # The first Ctrl-C clears the line; a second one, or one after a stopped answer, leaves.
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
        if self._execute(typed):
            return ExitCode.OK
        return self._signals.code

    def _execute(self, typed: str) -> bool:
        """Carries out a line, what fails as an error line; returns whether to leave."""
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
            # Nothing has changed, so the text goes back onto the input line.
            if self._talk.conversation is before:
                self._draft = typed
            self._screen.note("Stopped before the answer began; your text is on the line again.")
        except Exception as error:
            if wants_traceback() or self._signals.code is not None:
                raise
            # Up recalls the refused text; the input line stays empty, so the error stays in sight.
            text = line_for(error)
            if isinstance(error, ContextOverflow):
                each = ", ".join(f"{role} {count}" for role, count in error.counts.items())
                text = (
                    f"This turn does not fit: with the conversation it takes {each} tokens, and "
                    f"the smallest context holds {error.limit}. Nothing was run or cut. /undo "
                    "removes the last turn, /clear begins anew, a shorter text takes less, and a "
                    "larger --ctx-size (-c) at the start holds more."
                )
            self._screen.error(text)
        return False


class ChatSession:
    """A conversation and its commands; `notes` are texts that stand before the next question."""

    def __init__(
        self,
        session: Session,
        signals: Signals,
        options: GenerateOptions,
        system: str | None = None,
        think: Writer | None = None,
        encoding: str | None = None,
    ) -> None:
        self.session = session
        self.options = options
        self.conversation = Conversation(system)
        self.notes: tuple[str, ...] = ()
        self._encoding = encoding
        self._screen = session.screen
        self._signals = signals
        self._think = think
        self._shown: set[str] = set(session.runtime.notices)
        self._saved: Path | None = None  # the file that /save may write again

    def ask(self, typed: str) -> Answer:
        """Sends the next question and streams the answer.

        Raises:
            Cancelled: it was stopped before the answer began; nothing has changed.
            CaptError: what was shown of an answer becomes a turn; else nothing has changed.
        """
        question, before = with_notes(self.notes, typed), self.conversation
        options = self.options

        def add(answer: Answer) -> None:
            self.conversation = before.plus(Turn(question, answer, options))
            self.notes = ()

        answer = self._answer(before.asking(question), options, keep=add)
        self._report_answer(answer)
        return answer

    def run(self, call: Call) -> None:
        """Carries out a command of `COMMANDS` by the method of its name, but for `exit`."""
        command: Callable[[str], None] = getattr(self, f"_{call.name}")
        command(call.rest)

    def forget(self) -> None:
        """Clears the conversation and the KV caches."""
        self.conversation = Conversation(self.conversation.system)
        self.notes = ()
        self._saved = None  # /save must not replace it with another conversation
        self.session.runtime.forget()

    # Commands.

    def _help(self, _: str) -> None:
        rows = tuple((f"/{each.name} {each.takes}".strip(), each.summary) for each in COMMANDS)
        self._screen.aside(
            Table("", rows),
            Prose.of(
                "Alt-Enter begins a new line, and pasted text keeps its lines. Tab completes "
                "commands and files. Ctrl-C stops an answer. Nothing is written unless you ask for "
                "it with /save."
            ),
        )

    def _why(self, rest: str) -> None:
        turns = self.conversation.turns
        if not turns:
            raise UsageError("Nothing has been answered yet.")
        number = rest or str(len(turns))
        if not (number.isascii() and number.isdecimal() and 1 <= int(number) <= len(turns)):
            raise UsageError(f"/why takes the number of a turn, 1 to {len(turns)}.")
        # Its notices and warnings have been shown.
        answer = replace(turns[int(number) - 1].answer, notices=())
        self._screen.aside(*views(answer))

    def _regen(self, rest: str) -> None:
        """With settings: shows another answer beside the last one. Without: replaces it."""
        old = self.conversation.last()
        options = self._changed(rest) if rest else self.options
        if not rest and old.options == options:
            if not options.sample.temperature:
                raise UsageError(
                    "At temperature 0 the same settings give the same answer. Name another one, "
                    "such as /regen alpha=0 or /regen temp=0.7."
                )
            options = options.with_seed(options.sample.seed + 1)
        before = self.conversation.without_last()
        answer = self._answer(before.asking(old.question), options, live=not rest)
        if answer.finish is FinishReason.INTERRUPTED:
            self._roll_back()
            self._screen.note("Interrupted; the answer before it stays.")
            return
        if not rest:
            self.conversation = before.plus(Turn(old.question, answer, options))
            self._report_answer(answer)
            return
        self._roll_back()
        changes = differences(old.options, options)
        earlier = ", ".join(f"{name} {value}" for name, value, _ in changes) or "before"
        now = ", ".join(f"{name} {value}" for name, _, value in changes) or "now"
        self._screen.aside(Beside(pane(earlier, old.answer), pane(now, answer)))
        self._report_answer(answer)
        self._screen.note(
            "The conversation goes on with the earlier answer; /set and then /regen exchange it."
        )

    def _undo(self, _: str) -> None:
        if self.notes:  # such as that of another patient
            self.notes = self.notes[:-1]
            self._screen.note(f"The note is removed; {counted(len(self.notes), 'note')} left.")
            return
        self._replace(self.conversation.without_last())
        left = len(self.conversation.turns)
        self._screen.note(f"The last turn is removed; {counted(left, 'turn')} left.")

    def _clear(self, _: str) -> None:
        self.forget()
        stays = " The system text stays." if self.conversation.system is not None else ""
        self._screen.note(
            f"The conversation is forgotten, in all models.{stays} What the terminal shows is not."
        )

    def _system(self, rest: str) -> None:
        if not rest:
            text = self.conversation.system
            if text is None:
                raise UsageError("There is no system text. /system TEXT sets one.")
            self._screen.aside(Pane("System text", (Span(text),)))
            return
        new = None if rest in ('""', "''") else checked(rest, "/system")
        self._replace(replace(self.conversation, system=new))
        self._screen.note(f"The system text is {'removed' if new is None else 'set'}.")

    def _set(self, rest: str) -> None:
        if not rest:
            rows = tuple((each.name, each.of(self.options), each.takes) for each in SETTINGS)
            self._screen.aside(Table("Settings", rows, ("name", "value", "takes")))
            return
        before, self.options = self.options, self._changed(rest)
        for name, old, new in differences(before, self.options):
            self._screen.note(f"{name} is {new} from now on (was {old}).")
        self._screen.notes(unusual_settings(self.options))

    def _changed(self, rest: str) -> GenerateOptions:
        """The changed settings, checked against the site's limits and the bundle."""
        options = changed(self.options, rest)
        read_site().limits.check_weights((*options.combine.alphas, *options.combine.powers))
        pairs = self.session.runtime.bundle.pairs
        options.combine.rows(pairs if options.method.roles is None else min(pairs, 1))
        return options

    def _context(self, _: str) -> None:
        used = self._roll_back() if self.conversation.messages() else {}
        rows = []
        for role, model in self.session.runtime.models.items():
            count, limit = used.get(role, 0), model.context_limit
            rows.append((role, f"{count}/{limit} tokens", f"{100 * count / limit:.0f} %"))
        title = "Context that the conversation takes"
        self._screen.aside(Table(title, tuple(rows), right=(1, 2)))
        turns = tuple(
            (str(number), _start(turn.question), _start(turn.reply), str(turn.answer.finish))
            for number, turn in enumerate(self.conversation.turns, 1)
        )
        if turns:
            heading = ("turn", "question", "answer", "end")
            self._screen.aside(Table("Turns", turns, heading, right=(0,)))

    def _read(self, rest: str) -> None:
        document = read_path(named(rest, "/read"), "The note", self._encoding, pipes=False)
        text = document.text
        if not text.strip():
            raise UsageError("The note is empty.")
        notes = (*self.notes, text)
        counts = self.session.runtime.keep(self.conversation.asking(with_notes(notes, "")))
        limit = min(model.context_limit for model in self.session.runtime.models.values())
        if max(counts.values()) >= limit:
            raise ContextOverflow(counts, limit)
        self.notes = notes
        self._screen.notes(f"the note: {notice}." for notice in document.notices)
        hidden = sum(visible(character) != character for character in text if character != "\r")
        if hidden:
            characters = counted(hidden, "control or invisible character")
            self._screen.notes([f"{characters} in the note; the models get the text as it is."])
        each = ", ".join(f"{role} {count}" for role, count in counts.items())
        self._screen.note(
            f"The note ({counted(len(text), 'character')}) stands before your next question; with "
            f"it the turn takes {each} of {limit} tokens."
        )

    def _save(self, rest: str) -> None:
        if not self.conversation.messages():
            raise UsageError("Nothing has been said yet, so there is nothing to save.")
        read_site().limits.refuse(Feature.TRANSCRIPTS, "/save")
        runtime = self.session.runtime
        path = named(rest, "/save")
        if path.is_dir():
            raise UsageError("That is a folder. Name a file; nothing was written.")
        if path != self._saved and path.exists():
            raise UsageError("There is such a file already. Name a new one; nothing was written.")
        file = OutputFile(path, "The file of /save", force=True)
        about = provenance(runtime, self.options, self.session.load, self.session.date)
        file.write(transcript(self.conversation, runtime.bundle, about))
        self._saved = path
        turns = counted(len(self.conversation.turns), "turn")
        self._screen.note(f"Saved: {turns}, readable by you alone. The file holds what was said.")

    # How answers are made and remembered.

    def _answer(
        self,
        asked: Sequence[Message],
        options: GenerateOptions,
        *,
        keep: Callable[[Answer], None] | None = None,
        live: bool = True,
    ) -> Answer:
        """Generates an answer; `keep` first receives it, or the part before an error."""
        screen, done, begun = self._screen, 0, time.monotonic()

        def reading() -> None:
            # No progress line for answers that begin at once.
            if (seconds := time.monotonic() - begun) > 0.5:
                screen.progress(f"reading, {seconds:.0f} s (Ctrl-C stops)", None)

        def show(piece: bytes) -> None:
            nonlocal done
            done += 1
            self._signals.tick = None
            if live:
                screen.answer(piece)
            else:
                screen.progress("answering again", done / options.max_tokens)

        def think(piece: bytes) -> None:
            self._signals.tick = None
            if live and self._think is not None:
                self._think(piece)
            else:
                screen.progress("thinking (Ctrl-C stops)", None)

        self._signals.tick = reading
        try:
            answer = answer_to(self.session, asked, options, show=show, think=think, keep=keep)
            if answer.finish is FinishReason.INTERRUPTED and not answer.text:
                raise Cancelled("Stopped before the answer began.")
            if keep is not None:
                keep(answer)
        except Exception:
            if not done:  # no output: take the question out of the KV caches
                try:
                    self._roll_back()
                except CaptError:  # the prompt cannot be rendered at all
                    self.session.runtime.forget()
            raise
        finally:
            self._signals.tick = None
            screen.clear_progress()
            screen.end_thoughts()
            if live and done:
                screen.end_answer()
        return answer

    def _report_answer(self, answer: Answer) -> None:
        """Prints notices (each once), warnings, unsupported facts and one line of figures."""
        self._screen.notes(notice for notice in answer.notices if notice not in self._shown)
        self._shown.update(answer.notices)
        self._screen.notes(warnings(answer))
        asked = "\n".join(m.content for m in self.conversation.messages() if m.role != "assistant")
        found = with_sources(answer, Document(asked), None, "prompt").sources
        if found is not None and found.unsupported:
            self._screen.notes([sources_line(found)])
        self._screen.note(f"[{short_line(answer)}, {context_line(answer)}]")

    def _replace(self, conversation: Conversation) -> None:
        """Replaces the conversation, unless a model's template refuses the new one."""
        before, self.conversation = self.conversation, conversation
        try:
            self._roll_back()
        except CaptError:
            self.conversation = before
            raise

    def _roll_back(self) -> dict[str, int]:
        """Removes from the KV caches what the conversation does not hold; returns its tokens."""
        runtime = self.session.runtime
        if not self.conversation.turns and self.conversation.system is None:
            runtime.forget()
        return runtime.keep(self.conversation.asking(_ANYTHING))


def _start(text: str) -> str:
    return clipped(" ".join(text.split()), _CELL)


def named(rest: str, command: str) -> Path:
    """The path argument of a command. Raises UsageError if there is none."""
    if not rest:
        raise UsageError(f"{command} needs the name of a file.")
    try:
        path = path_of(rest)
        path.exists()  # not a name at all, such as one that is too long
    except (OSError, ValueError, RuntimeError):
        raise UsageError(f"{command} cannot use that name. Give another one.") from None
    return path
