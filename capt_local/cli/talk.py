"""A conversation with a loaded bundle: what is asked, what is kept, what is written down."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from capt_local.chat.conversation import (
    Conversation,
    Speakers,
    Turn,
    clear_line,
    turn_line,
    undo_line,
    with_notes,
    written,
)
from capt_local.cli.session import Session, Writer, answer_to
from capt_local.cli.signals import Signals
from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.step import FinishReason
from capt_local.errors import Cancelled, CaptError, ContextOverflow, UsageError
from capt_local.prompting.messages import Message
from capt_local.provenance import provenance
from capt_local.report.answers import context_line, short_line
from capt_local.report.json import COMMANDS, Answer, warnings

# What `keep` is asked about when nothing is being asked: the beginning of any next turn.
_ANYTHING = "."


class Talk:
    """The state of a chat.

    Args:
        session: with the models.
        signals: what stops an answer.
        options: how answers are made.
        log: the running transcript; None for none.
        system: the system text; None for none.
        think: shows a model's thoughts; None: nobody sees them.

    Attributes:
        session: as given.
        conversation: what was said so far.
        options: as given; `/set` changes them.
        notes: texts that will stand before the next question.
    """

    def __init__(
        self,
        session: Session,
        signals: Signals,
        options: GenerateOptions,
        log: TranscriptFile | None = None,
        system: str | None = None,
        think: Writer | None = None,
    ) -> None:
        """Starts with nothing said."""
        self.session = session
        self.options = options
        self.conversation = Conversation(system)
        self.notes: tuple[str, ...] = ()
        self._signals = signals
        self._think = think
        self._log = log
        self._told: set[str] = set(session.runtime.notices)
        self.write_down(lambda: written(self.conversation, self.first_line()))

    @property
    def speakers(self) -> Speakers:
        """Whose conversation it is."""
        bundle = self.session.runtime.bundle
        return Speakers(bundle.id, bundle.digests)

    def first_line(self) -> str:
        """That of a transcript."""
        session = self.session
        about = provenance(session.runtime, self.options, session.load, session.date)
        return self.speakers.line(about)

    def ask(self, typed: str) -> Answer:
        """Asks the next question, and shows the answer while it is made.

        Raises:
            Cancelled: it was stopped before the answer began; nothing has changed.
            ContextOverflow, CaptError: it cannot be answered. What was shown of an answer is kept
                as a turn; if nothing was, nothing has changed.
        """
        question, before = with_notes(self.notes, typed), self.conversation
        options = self.options

        def add(answer: Answer) -> None:
            turn = Turn(question, answer, options)
            self.conversation, self.notes = before.plus(turn), ()
            self.write_down(lambda: turn_line(turn))

        answer = self._answer(before.asking(question), options, keep=add)
        self.tell(answer)
        return answer

    def ask_again(self, options: GenerateOptions, *, live: bool) -> Turn | None:
        """Answers the last question again; the new answer takes the place of the one before.

        Args:
            options: for this answer.
            live: whether it is shown while it is made.

        Returns:
            The new turn; None if it was interrupted: then the answer before it stays.

        Raises:
            Cancelled, CaptError: as for `ask`; the answer before it stays.
        """
        old = self.conversation
        before, question = old.without_last(), old.last().question

        def exchange(answer: Answer) -> None:
            if answer.finish not in (FinishReason.INTERRUPTED, FinishReason.ERROR):
                turn = Turn(question, answer, options)
                self.conversation = before.plus(turn)
                self.write_down(lambda: f"{undo_line()}\n{turn_line(turn)}")

        self._answer(before.asking(question), options, live=live, keep=exchange)
        if self.conversation is old:
            self.roll_back()
            return None
        return self.conversation.last()

    def replace(self, conversation: Conversation, lines: Callable[[], str]) -> None:
        """Goes on with another conversation.

        Args:
            conversation: from now on.
            lines: makes what the running transcript says about it.

        Raises:
            CaptError: the models cannot take it; the conversation stays as it was.
        """
        before, self.conversation = self.conversation, conversation
        try:
            self.roll_back()
        except CaptError:
            self.conversation = before
            raise
        self.write_down(lines)

    def roll_back(self) -> dict[str, int]:
        """Takes out of the KV caches what the conversation does not hold.

        Returns:
            Tokens that it takes in each model, by role, with the frame of the next question.
        """
        runtime = self.session.runtime
        if not self.conversation.turns and self.conversation.system is None:
            runtime.forget()
        return runtime.keep(self.conversation.asking(_ANYTHING))

    def forget(self) -> None:
        """Forgets what was said, and what the models have of it."""
        self.conversation = Conversation(self.conversation.system)
        self.notes = ()
        self.session.runtime.forget()
        self.write_down(clear_line)

    def tell(self, answer: Answer) -> None:
        """What there is to say about an answer: each notice once, warnings, one line of figures."""
        screen = self.session.screen
        screen.notes(notice for notice in answer.notices if notice not in self._told)
        self._told.update(answer.notices)
        screen.notes(warnings(answer, COMMANDS))
        screen.note(f"[{short_line(answer)}, {context_line(answer)}]")

    def write_down(self, lines: Callable[[], str]) -> None:
        """Adds lines to the running transcript; a full disk is told and tried again later.

        Args:
            lines: makes them; the record of a long answer takes time, so only where it is wanted.
        """
        if self._log is not None:
            try:
                self._log.add(*lines().splitlines())
            except UsageError as error:
                self.session.screen.error(str(error))

    def writes_to(self, path: Path) -> bool:
        """Whether a path leads to the running transcript."""
        return self._log is not None and self._log.is_at(path)

    def close(self) -> None:
        """Ends the running transcript.

        Raises:
            UsageError: lines of it could still not be written.
        """
        if self._log is not None:
            try:
                self._log.add()
            finally:
                self._log.close()

    def _answer(
        self,
        asked: Sequence[Message],
        options: GenerateOptions,
        *,
        keep: Callable[[Answer], None],
        live: bool = True,
    ) -> Answer:
        """Makes an answer; `keep` gets it before anything else can fail."""
        screen, done = self.session.screen, 0

        def show(piece: bytes) -> None:
            nonlocal done
            done += 1
            self._signals.tick = None
            if live:
                screen.answer(piece)
            else:
                screen.progress("answering again", done / options.max_tokens)

        self._signals.tick = _reading(self.session)
        try:
            think = self._thinks if live else self._thinks_unseen
            answer = answer_to(self.session, asked, options, show=show, think=think, keep=keep)
            if answer.finish is FinishReason.INTERRUPTED and not answer.text:
                raise Cancelled("Stopped before the answer began.")
            keep(answer)
        except Exception:
            if not done:
                self._undo_reading()
            raise
        finally:
            self._signals.tick = None
            screen.clear_progress()
            screen.end_thoughts()
            if live and done:
                screen.end_answer()
        return answer

    def _thinks(self, piece: bytes) -> None:
        if self._think is None:
            self._thinks_unseen(piece)
        else:
            self._signals.tick = None
            self._think(piece)

    def _thinks_unseen(self, _: bytes) -> None:
        self._signals.tick = None
        self.session.screen.progress("thinking (Ctrl-C stops)", None)

    def _undo_reading(self) -> None:
        """Nothing came of a question: the models forget it."""
        try:
            self.roll_back()
        except CaptError:  # the models could not take what was asked at all
            self.session.runtime.forget()


def no_room(error: ContextOverflow) -> str:
    """Why a turn was refused and what helps; says nothing of the text but its length."""
    each = ", ".join(f"{role} {count}" for role, count in error.counts.items())
    return (
        f"This turn does not fit: with the conversation it takes {each} tokens, and the smallest "
        f"context holds {error.limit}. Nothing was run or cut. /undo takes the last turn back, "
        "/clear begins anew, and a larger --ctx-size (-c) at the start holds more."
    )


def _reading(session: Session) -> Callable[[], None]:
    """A progress line while the models read; answers that begin at once do not flicker."""
    begun = time.monotonic()

    def tick() -> None:
        seconds = time.monotonic() - begun
        if seconds > 0.5:
            session.screen.progress(f"reading, {seconds:.0f} s (Ctrl-C stops)", None)

    return tick


class TranscriptFile:
    """A new file of mode 0600 to which whole lines are added.

    Args:
        path: where no file may be yet.

    Raises:
        UsageError: there is one, or the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        """Makes the file, so that a bad place is found before anything is loaded."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        try:
            self._file = io.FileIO(os.open(path, flags, 0o600), "wb")
        except FileExistsError:
            raise UsageError("The --transcript file is there already. Name a new one.") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "that is no file name"
            raise UsageError(f"The --transcript file cannot be made: {reason}.") from None
        self._path = path
        self._safe = 0  # bytes of whole lines
        self._waiting: list[str] = []

    def add(self, *lines: str) -> None:
        """Writes lines, and those that could not be written before.

        Raises:
            UsageError: the disk is full or has gone. Whole lines that were there stay, and these
                are kept for the next time.
        """
        self._waiting += lines
        data = "".join(f"{line}\n" for line in self._waiting).encode()
        try:
            self._write(data)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._safe)
            raise UsageError(
                f"The transcript cannot be written: {error.strerror}. It is tried again with the "
                "next turn; /save writes the conversation elsewhere."
            ) from None
        self._safe += len(data)
        self._waiting.clear()

    def is_at(self, path: Path) -> bool:
        """Whether a path leads to this file."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), path.stat())
        except OSError:
            return False

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def discard(self) -> None:
        """Closes the file and takes it away: nothing was said."""
        if self.is_at(self._path):
            with contextlib.suppress(OSError):
                self._path.unlink()
        self.close()

    def _write(self, data: bytes) -> None:
        # Half a line of an earlier time would make the rest unreadable.
        self._file.seek(self._safe)
        self._file.truncate()
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
        os.fsync(self._file.fileno())
