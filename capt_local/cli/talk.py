"""A conversation with a loaded bundle: asking, the commands, and what is written down.

Each command shows its result beside the answers, on standard error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from capt_local.chat.commands import COMMANDS, SETTINGS, Call, changed, differences, path_of
from capt_local.chat.conversation import (
    CLEAR,
    UNDO,
    Conversation,
    Turn,
    first_line,
    system_line,
    transcript,
    turn_line,
    with_notes,
)
from capt_local.cli.files import OutputFile, checked
from capt_local.cli.session import Session, Writer, answer_to, doubts
from capt_local.cli.signals import Signals
from capt_local.config import Feature, read_site
from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.step import FinishReason
from capt_local.documents import Document, read_path
from capt_local.errors import Cancelled, CaptError, ContextOverflow, UsageError
from capt_local.line_file import LineFile
from capt_local.prompting.messages import Message
from capt_local.provenance import provenance
from capt_local.report.answers import clipped, context_line, counted, pane, short_line, views
from capt_local.report.json import COMMANDS as COMMANDS_ADVICE
from capt_local.report.json import Answer, sources_line, warnings, with_sources
from capt_local.report.sanitise import visible
from capt_local.report.views import Bars, Beside, Pane, Prose, Span, Table

# What `Runtime.keep` is asked about when nothing is being asked: the beginning of any next turn.
_ANYTHING = "."
_CELL = 40


class Talk:
    """The state of a chat.

    `log` is the running transcript; `think` shows a model's reasoning; `encoding` is that of text
    files for `/read`.

    Attributes:
        conversation: what was said so far.
        notes: texts that will stand before the next question.
    """

    def __init__(
        self,
        session: Session,
        signals: Signals,
        options: GenerateOptions,
        log: LineFile | None = None,
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
        self._log = log
        self._shown: set[str] = set(session.runtime.notices)
        self._saved: Path | None = None  # the file that /save may write again
        self._write_down(lambda: transcript(self.conversation, self._first_line()))

    def ask(self, typed: str) -> Answer:
        """Asks the next question, and shows the answer while it is made.

        Raises:
            Cancelled: it was stopped before the answer began; nothing has changed.
            ContextOverflow, CaptError: it cannot be answered. What was shown of an answer becomes
                a turn; if nothing was, nothing has changed.
        """
        question, before = with_notes(self.notes, typed), self.conversation
        options = self.options

        def add(answer: Answer) -> None:
            turn = Turn(question, answer, options)
            self.conversation, self.notes = before.plus(turn), ()
            self._write_down(lambda: turn_line(turn))

        answer = self._answer(before.asking(question), options, keep=add)
        self._tell(answer)
        return answer

    def run(self, call: Call) -> None:
        """Carries out a command of `COMMANDS` by the method of its name; not `exit`.

        Raises:
            CaptError: it cannot be done; nothing has changed.
        """
        command: Callable[[str], None] = getattr(self, f"_{call.name}")
        command(call.rest)

    def forget(self) -> None:
        """Forgets what was said, and what the models have of it."""
        self.conversation = Conversation(self.conversation.system)
        self.notes = ()
        self._saved = None  # another conversation does not take its place
        self.session.runtime.forget()
        self._write_down(lambda: CLEAR)

    def close(self) -> None:
        """Ends the running transcript. Raises UsageError where lines could not be written."""
        if self._log is not None:
            try:
                self._log.append(b"")
            finally:
                self._log.close()

    # Commands.

    def _help(self, _: str) -> None:
        rows = tuple((f"/{each.name} {each.takes}".strip(), each.summary) for each in COMMANDS)
        self._screen.aside(
            Table("", rows),
            Prose.of(
                'Alt-Enter begins a new line, text between """ and """ may have many, and pasted '
                "text keeps its lines. Tab completes commands and files. Ctrl-C stops an answer. "
                "Nothing is written unless you ask for it with /save or --transcript."
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
        self._screen.aside(*views(answer, COMMANDS_ADVICE))

    def _regen(self, rest: str) -> None:
        """With settings: another answer beside the last one, which stays. Else a new one."""
        old = self.conversation.last()
        options = self._changed(rest) if rest else self.options
        further = not rest and old.options == options
        if further:
            if not options.sample.temperature:
                raise UsageError(
                    "At temperature 0 the same settings give the same answer. Name another one, "
                    "such as /regen alpha=0 or /regen temp=0.7."
                )
            options = changed(options, f"seed={options.sample.seed + 1}")
        before = self.conversation.without_last()
        # The seed of a further draw is no news; whatever else differs is shown side by side.
        answer = self._answer(before.asking(old.question), options, live=further)
        if answer.finish is FinishReason.INTERRUPTED:
            self._roll_back()
            self._screen.note("Interrupted; the answer before it stays.")
            return
        if rest:
            self._roll_back()
        else:
            turn = Turn(old.question, answer, options)
            self.conversation = before.plus(turn)
            self._write_down(lambda: UNDO + turn_line(turn))
        if not further:
            changes = differences(old.options, options)
            earlier = ", ".join(f"{name} {value}" for name, value, _ in changes) or "before"
            now = ", ".join(f"{name} {value}" for name, _, value in changes) or "now"
            self._screen.aside(Beside(pane(earlier, old.answer), pane(now, answer)))
        self._tell(answer)
        if rest:
            self._screen.note(
                "The conversation goes on with the earlier answer; /set and then /regen exchange "
                "it."
            )
        elif not further:
            self._screen.note("The conversation goes on with the new answer.")

    def _undo(self, _: str) -> None:
        if self.notes:  # such as that of another patient
            self.notes = self.notes[:-1]
            self._screen.note(f"The note is removed; {counted(len(self.notes), 'note')} left.")
            return
        self._replace(self.conversation.without_last(), lambda: UNDO)
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
        self._replace(replace(self.conversation, system=new), lambda: system_line(new))
        self._screen.note(f"The system text is {'removed' if new is None else 'set'}.")

    def _set(self, rest: str) -> None:
        if not rest:
            self._screen.aside(_settings(self.options))
            return
        before, self.options = self.options, self._changed(rest)
        for name, old, new in differences(before, self.options):
            self._screen.note(f"{name} is {new} from now on (was {old}).")
        self._screen.notes(doubts(self.options))

    def _changed(self, rest: str) -> GenerateOptions:
        """The settings with new values that these models can answer with."""
        options = changed(self.options, rest)
        read_site().limits.check_weights((*options.combine.alphas, *options.combine.powers))
        pairs = self.session.runtime.bundle.pairs
        options.combine.rows(pairs if options.method.roles is None else min(pairs, 1))
        return options

    def _show(self, _: str) -> None:
        runtime = self.session.runtime
        models = tuple(
            (role, about.architecture, about.file_type, str(model.context_limit))
            for role, model in runtime.models.items()
            for about in (model.metadata,)
        )
        columns = ("role", "architecture", "format", "context")
        title = f"Bundle {runtime.bundle.id}"
        self._screen.aside(Table(title, models, columns, right=(3,)), _settings(self.options))
        if self.conversation.system is not None:
            self._screen.aside(Pane("System text", (Span(self.conversation.system),)))
        turns = tuple(
            (str(number), _start(turn.question), _start(turn.reply), str(turn.answer.finish))
            for number, turn in enumerate(self.conversation.turns, 1)
        )
        if turns:
            heading = ("turn", "question", "answer", "end")
            self._screen.aside(Table("Turns", turns, heading, right=(0,)))

    def _context(self, _: str) -> None:
        used = self._roll_back() if self.conversation.messages() else {}
        models, rows = self.session.runtime.models, []
        width = max(map(len, models))
        for role, model in models.items():
            count, limit = used.get(role, 0), model.context_limit
            rows.append((f"{role:<{width}}  {count}/{limit} tokens", min(count / limit, 1.0)))
        self._screen.aside(Bars("Context that the conversation takes", tuple(rows)))

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
        path = named(rest, "/save")
        if path.is_dir():
            raise UsageError("That is a folder. Name a file; nothing was written.")
        if path != self._saved and path.exists():
            raise UsageError("There is such a file already. Name a new one; nothing was written.")
        file = OutputFile(path, "The file of /save", force=True)
        file.write(transcript(self.conversation, self._first_line()))
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
        """Makes an answer; `keep` gets it, or the part that an error ended, before all else."""
        screen, done, begun = self._screen, 0, time.monotonic()

        def reading() -> None:
            # Answers that begin at once do not flicker.
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
            if not done:  # nothing came of the question: the models forget it
                try:
                    self._roll_back()
                except CaptError:  # the models could not take what was asked at all
                    self.session.runtime.forget()
            raise
        finally:
            self._signals.tick = None
            screen.clear_progress()
            screen.end_thoughts()
            if live and done:
                screen.end_answer()
        return answer

    def _tell(self, answer: Answer) -> None:
        """What there is to say about an answer: each notice once, warnings, one line of figures."""
        self._screen.notes(notice for notice in answer.notices if notice not in self._shown)
        self._shown.update(answer.notices)
        self._screen.notes(warnings(answer, COMMANDS_ADVICE))
        asked = "\n".join(m.content for m in self.conversation.messages() if m.role != "assistant")
        found = with_sources(answer, Document(asked), None, "prompt").sources
        if found is not None and found.unsupported:
            self._screen.notes([sources_line(found)])
        self._screen.note(f"[{short_line(answer)}, {context_line(answer)}]")

    def _replace(self, conversation: Conversation, lines: Callable[[], str]) -> None:
        """Goes on with another conversation, if the models can take it."""
        before, self.conversation = self.conversation, conversation
        try:
            self._roll_back()
        except CaptError:
            self.conversation = before
            raise
        self._write_down(lines)

    def _roll_back(self) -> dict[str, int]:
        """Removes from the KV caches what the conversation does not hold.

        Returns:
            Tokens that it takes in each model, by role, with the frame of the next question.
        """
        runtime = self.session.runtime
        if not self.conversation.turns and self.conversation.system is None:
            runtime.forget()
        return runtime.keep(self.conversation.asking(_ANYTHING))

    def _first_line(self) -> str:
        session = self.session
        about = provenance(session.runtime, self.options, session.load, session.date)
        return first_line(session.runtime.bundle, about)

    def _write_down(self, lines: Callable[[], str]) -> None:
        """Adds lines to the running transcript, which are made only where there is one."""
        if self._log is not None:
            try:
                self._log.append(lines().encode())
            except UsageError as error:
                self._screen.error(f"{error} /save writes the conversation elsewhere.")


def overflow_text(error: ContextOverflow) -> str:
    """Why a turn was refused and what helps; says nothing of the text but its length."""
    each = ", ".join(f"{role} {count}" for role, count in error.counts.items())
    return (
        f"This turn does not fit: with the conversation it takes {each} tokens, and the smallest "
        f"context holds {error.limit}. Nothing was run or cut. /undo removes the last turn, /clear "
        "begins anew, a shorter text takes less, and a larger --ctx-size (-c) at the start holds "
        "more."
    )


def _settings(options: GenerateOptions) -> Table:
    rows = tuple((each.name, each.of(options), each.takes) for each in SETTINGS)
    return Table("Settings", rows, ("name", "value", "takes"))


def _start(text: str) -> str:
    return clipped(" ".join(text.split()), _CELL)


def named(rest: str, command: str) -> Path:
    """The path that stands behind a command. Raises UsageError where none does."""
    if not rest:
        raise UsageError(f"{command} needs the name of a file.")
    try:
        path = path_of(rest)
        path.exists()  # not a name at all, such as one that is too long
    except (OSError, ValueError, RuntimeError):
        raise UsageError(f"{command} cannot use that name. Give another one.") from None
    return path
