"""What the commands of a chat do. Each shows its result beside the answers, on standard error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from capt_local.chat.commands import (
    COMMANDS,
    SETTINGS,
    Call,
    changed,
    differences,
    path_of,
)
from capt_local.chat.conversation import (
    LARGEST,
    Turn,
    clear_line,
    read_transcript,
    system_line,
    undo_line,
    with_notes,
    written,
)
from capt_local.cli.files import OutputFile, checked, decoded
from capt_local.cli.session import doubts
from capt_local.cli.talk import Talk
from capt_local.config import Feature, read_site
from capt_local.decoding.options import GenerateOptions
from capt_local.errors import UsageError
from capt_local.report.answers import clipped, marked_text, short_line, summary_line, views
from capt_local.report.json import COMMANDS as COMMANDS_ADVICE
from capt_local.report.json import Answer
from capt_local.report.sanitise import visible
from capt_local.report.views import Bars, Beside, Pane, Prose, Span, Table

_LARGEST_NOTE = 1 << 24  # bytes
_CELL = 40


class Commands:
    """Carries out commands.

    Args:
        talk: what they are about.
        forget_typed: forgets the lines that were typed.
        toggle_multi: changes what Enter does; returns whether it now begins a new line.
    """

    def __init__(
        self, talk: Talk, forget_typed: Callable[[], None], toggle_multi: Callable[[], bool]
    ) -> None:
        """Does nothing yet."""
        self._talk = talk
        self._screen = talk.session.screen
        self._forget_typed = forget_typed
        self._toggle_multi = toggle_multi
        self._questioned = ""  # a /set that was asked about
        self._own: Path | None = None  # the file that /save may write again

    def run(self, call: Call) -> None:
        """Carries one out; `exit` is not among them.

        Raises:
            CaptError: it cannot be done; nothing has changed.
        """
        done: Callable[[str], None] = getattr(self, f"_{call.name}")
        done(call.rest)

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
        turns = self._talk.conversation.turns
        if not turns:
            raise UsageError("Nothing has been answered yet.")
        number = rest or str(len(turns))
        if not (number.isascii() and number.isdecimal() and 1 <= int(number) <= len(turns)):
            raise UsageError(f"/why takes the number of a turn, 1 to {len(turns)}.")
        # Its notices and warnings have been told.
        answer = replace(turns[int(number) - 1].answer, notices=())
        self._screen.aside(*views(answer, more=COMMANDS_ADVICE))

    def _regen(self, rest: str) -> None:
        talk, screen = self._talk, self._screen
        old = talk.conversation.last()
        options = self._changed(rest) if rest else talk.options
        if not rest and old.options == options:
            options = _next_draw(options)
        changes = [] if old.options is None else differences(old.options, options)
        beside = changes != [] or old.options is None
        # The seed of a further draw is no news; whatever else differs is shown side by side.
        if not rest and [name for name, *_ in changes] == ["seed"]:
            beside = False
        new = talk.ask_again(options, live=not beside)
        if new is None:
            screen.note("Interrupted; the answer before it stays.")
            return
        if beside:
            screen.aside(_side_by_side(old, new, changes))
        talk.tell(new.answer)
        if beside:
            screen.note("The conversation goes on with the new answer.")

    def _undo(self, _: str) -> None:
        talk = self._talk
        if talk.notes:  # such as that of another patient
            talk.notes = talk.notes[:-1]
            self._screen.note(f"The note is taken back; {_count(len(talk.notes), 'note')} left.")
            return
        talk.replace(talk.conversation.without_last(), undo_line)
        left = len(talk.conversation.turns)
        self._screen.note(f"The last turn is taken back; {_count(left, 'turn')} left.")

    def _clear(self, _: str) -> None:
        self._talk.forget()
        self._forget_typed()
        self._own = None  # another conversation does not take its place
        kept = " The system text stays." if self._talk.conversation.system is not None else ""
        self._screen.note(
            f"The conversation is forgotten, in all models.{kept} What the terminal shows is not."
        )

    def _system(self, rest: str) -> None:
        talk = self._talk
        if not rest:
            text = talk.conversation.system
            if text is None:
                raise UsageError("There is no system text. /system TEXT sets one.")
            self._screen.aside(Pane("System text", (Span(text),)))
            return
        new = None if rest in ('""', "''") else checked(rest, "/system")
        changed = replace(talk.conversation, system=new)
        talk.replace(changed, lambda: system_line(new))
        self._screen.note(f"The system text is {'removed' if new is None else 'set'}.")

    def _set(self, rest: str) -> None:
        talk = self._talk
        if not rest:
            self._screen.aside(_settings(talk.options))
            return
        before, options = talk.options, self._changed(rest)
        doubt = doubts(options)
        if doubt and doubt != doubts(before) and self._questioned != rest:
            self._questioned = rest
            text = doubt[0][0].upper() + doubt[0][1:]
            self._screen.note(f"{text} Nothing has changed; the same command again sets it.")
            return
        self._questioned = ""
        talk.options = options
        for name, old, new in differences(before, talk.options):
            self._screen.note(f"{name} is {new} from now on (was {old}).")

    def _changed(self, rest: str) -> GenerateOptions:
        """The settings with new values that these models can answer with."""
        options = changed(self._talk.options, rest)
        read_site().limits.check_weights((*options.combine.alphas, *options.combine.powers))
        pairs = self._talk.session.runtime.bundle.pairs
        options.combine.rows(pairs if options.method.roles is None else min(pairs, 1))
        return options

    def _show(self, _: str) -> None:
        talk, runtime = self._talk, self._talk.session.runtime
        models = tuple(
            (role, about.architecture, about.file_type, str(model.context_limit))
            for role, model in runtime.models.items()
            for about in (model.metadata,)
        )
        columns = ("role", "architecture", "format", "context")
        turns = tuple(
            (str(number), _start(turn.question), _start(turn.reply), str(turn.answer.finish))
            for number, turn in enumerate(talk.conversation.turns, 1)
        )
        title = f"Bundle {runtime.bundle.id}"
        self._screen.aside(Table(title, models, columns, right=(3,)), _settings(talk.options))
        if talk.conversation.system is not None:
            self._screen.aside(Pane("System text", (Span(talk.conversation.system),)))
        if turns:
            heading = ("turn", "question", "answer", "end")
            self._screen.aside(Table("Turns", turns, heading, right=(0,)))

    def _context(self, _: str) -> None:
        talk = self._talk
        used = talk.roll_back() if talk.conversation.messages() else {}
        models, rows = talk.session.runtime.models, []
        width = max(map(len, models))
        for role, model in models.items():
            count, limit = used.get(role, 0), model.context_limit
            rows.append((f"{role:<{width}}  {count}/{limit} tokens", min(count / limit, 1.0)))
        self._screen.aside(Bars("Context that the conversation takes", tuple(rows)))

    def _stats(self, _: str) -> None:
        talk = self._talk
        turns, runtime = talk.conversation.turns, talk.session.runtime
        if turns:
            self._screen.note(summary_line(turns[-1].answer))
        decoded = ", ".join(f"{role} {count}" for role, count in runtime.decoded().items())
        self._screen.note(
            f"{_count(len(turns), 'turn')}; tokens computed in this session: {decoded}; "
            f"models loaded in {talk.session.load_seconds:.1f} s"
        )

    def _read(self, rest: str) -> None:
        talk = self._talk
        text = decoded(file_bytes(rest, "/read", _LARGEST_NOTE), "The note")
        if not text.strip():
            raise UsageError("The note is empty.")
        notes = (*talk.notes, text)
        taken = talk.session.runtime.keep(talk.conversation.asking(with_notes(notes, "")))
        talk.notes = notes
        hidden = sum(visible(character) != character for character in text if character != "\r")
        if hidden:
            self._screen.note(
                f"note: {_count(hidden, 'control or invisible character')} in the note; the models "
                "get the text as it is."
            )
        limit = min(model.context_limit for model in talk.session.runtime.models.values())
        each = ", ".join(f"{role} {count}" for role, count in taken.items())
        self._screen.note(
            f"The note ({_count(len(text), 'character')}) stands before your next question; with "
            f"it the turn takes {each} of {limit} tokens."
        )

    def _save(self, rest: str) -> None:
        talk = self._talk
        if not talk.conversation.messages():
            raise UsageError("Nothing has been said yet, so there is nothing to save.")
        read_site().limits.refuse(Feature.TRANSCRIPTS, "/save")
        path = named(rest, "/save")
        if talk.writes_to(path):
            raise UsageError("That is the running transcript, which holds all this already.")
        if path.is_dir():
            raise UsageError("That is a folder. Name a file; nothing was written.")
        if path != self._own and path.exists():
            raise UsageError("There is such a file already. Name a new one; nothing was written.")
        file = OutputFile(path, "The file of /save", force=True)
        file.write(written(talk.conversation, talk.first_line()))
        self._own = path
        self._screen.note(
            f"Saved: {_count(len(talk.conversation.turns), 'turn')}, readable by you alone. The "
            "file holds what was said."
        )

    def _load(self, rest: str) -> None:
        talk, speakers = self._talk, self._talk.speakers
        data = file_bytes(rest, "/load", LARGEST)
        conversation = read_transcript(data, speakers)
        before = len(talk.conversation.turns)
        talk.replace(conversation, lambda: written(conversation, clear_line()))
        self._own = named(rest, "/load")
        waiting, talk.notes = len(talk.notes), ()
        if waiting:
            self._screen.note(f"{_count(waiting, 'note')} that waited for a question: forgotten.")
        if None in speakers.digests.values():
            self._screen.note(
                "note: these models have no manifest, so it is not known whether the conversation "
                "was held with the same ones."
            )
        gone = f" in the place of {_count(before, 'turn')}" if before else ""
        self._screen.note(f"Loaded: {_count(len(conversation.turns), 'turn')}{gone}.")
        if conversation.turns:
            last = conversation.turns[-1].answer
            self._screen.aside(Pane("Last answer", marked_text(last.steps), short_line(last)))

    def _multi(self, _: str) -> None:
        several = self._toggle_multi()
        sends, breaks = ("Alt-Enter", "Enter") if several else ("Enter", "Alt-Enter")
        self._screen.note(f"{breaks} begins a new line, {sends} sends.")


def _next_draw(options: GenerateOptions) -> GenerateOptions:
    if not options.sample.temperature:
        raise UsageError(
            "At temperature 0 the same settings give the same answer. Name another one, such as "
            "/regen alpha=0 or /regen temp=0.7."
        )
    return changed(options, f"seed={options.sample.seed + 1}")


def _side_by_side(old: Turn, new: Turn, changes: list[tuple[str, str, str]]) -> Beside:
    before = ", ".join(f"{name} {value}" for name, value, _ in changes) or "before"
    now = ", ".join(f"{name} {value}" for name, _, value in changes) or "now"
    return Beside(_pane(before, old.answer), _pane(now, new.answer))


def _pane(title: str, answer: Answer) -> Pane:
    return Pane(title, marked_text(answer.steps), short_line(answer))


def _settings(options: GenerateOptions) -> Table:
    rows = tuple((each.name, each.of(options), each.takes) for each in SETTINGS)
    return Table("Settings", rows, ("name", "value", "takes"))


def _start(text: str) -> str:
    return clipped(" ".join(text.split()), _CELL)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def named(rest: str, command: str) -> Path:
    """The path that stands behind a command.

    Raises:
        UsageError: none does, or it can be no path.
    """
    if not rest:
        raise UsageError(f"{command} needs the name of a file.")
    try:
        path = path_of(rest)
        path.exists()  # not a name at all, such as one that is too long
    except (OSError, ValueError, RuntimeError):
        raise UsageError(f"{command} cannot use that name. Give another one.") from None
    return path


def file_bytes(rest: str, command: str, largest: int) -> bytes:
    """The bytes of the file that stands behind a command.

    Raises:
        UsageError: there is no such file, it cannot be read or is larger than `largest` bytes.
    """
    path = named(rest, command)
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{command} needs a regular file.")
        if path.stat().st_size > largest:
            raise UsageError(f"The file is larger than {largest >> 20} MiB.")
        return path.read_bytes()
    except OSError as error:
        # The name is not repeated: people name files after patients.
        raise UsageError(f"The file cannot be read: {error.strerror}.") from None
