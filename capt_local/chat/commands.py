"""What a typed line means: text for the models, or a command."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from capt_local.errors import UsageError

BLOCK = '"""'


@dataclass(frozen=True, slots=True)
class Command:
    """A command as the help tells it.

    Attributes:
        name: without the slash.
        takes: what may stand behind it, for people.
        summary: what it does.
        takes_path: whether that is a file.
    """

    name: str
    takes: str
    summary: str
    takes_path: bool = False


COMMANDS = (
    Command("help", "", "this list"),
    Command("why", "[N]", "where the expert changed the last answer (or that of turn N)"),
    Command(
        "regen", "[NAME=VALUE ...]", "answer again; with other settings, both stand side by side"
    ),
    Command("undo", "", "take the last turn back, or a note that waits for its question"),
    Command("clear", "", "forget the conversation, the notes and the typed lines"),
    Command("system", "[TEXT]", 'show or change the system text; "" removes it'),
    Command("set", "[NAME VALUE]", "show or change how answers are made: alpha, temp, method, ..."),
    Command("show", "", "models, settings and turns"),
    Command("context", "", "how full the contexts of the models are"),
    Command("stats", "", "speed and counts of the last answer and of the session"),
    Command("read", "FILE", "put a note before the next question, as text", takes_path=True),
    Command("save", "FILE", "write the conversation (JSON Lines, mode 0600)", takes_path=True),
    Command("load", "FILE", "go on from a saved conversation", takes_path=True),
    Command("multi", "", "Enter makes a new line and Alt-Enter sends; again: the other way round"),
    Command("exit", "", "leave (also Ctrl-D)"),
)
_ALIASES = {"quit": "exit", "bye": "exit", "q": "exit", "?": "help", "h": "help"}
_CALL = re.compile(r"/(?:([a-zA-Z?]\S*)(?:\s+(.*))?)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Call:
    """A command that was typed, and what stood behind it."""

    name: str
    rest: str = ""


def understood(line: str) -> Call | str:
    '''A command, or the text for the models.

    Text between `"""` is taken as it stands, whatever it begins with; so is text of several lines
    that begins with a slash but with no command.

    Raises:
        UsageError: one line that begins with a slash, but with no command; or text behind a
            command that takes none. It is not repeated.
    '''
    inside = in_block(line)
    if inside is not None:
        return inside
    found = _CALL.fullmatch(line) if line.startswith("/") else None
    if found is None:
        return line
    typed = (found[1] or "").lower()
    name = _ALIASES.get(typed, typed)
    names = [command.name for command in COMMANDS]
    if name in names:
        return _call(COMMANDS[names.index(name)], (found[2] or "").strip())
    if "\n" in line:
        return line
    near = get_close_matches(name, names, 1, 0.5)
    hint = f"the nearest is /{near[0]}" if near else "/help lists them"
    raise UsageError(
        f"There is no such command; {hint}. Text that begins with a slash goes between "
        f"{BLOCK} and {BLOCK}."
    )


def _call(command: Command, rest: str) -> Call:
    # A pasted text that begins like this must not take the conversation away.
    if rest and not command.takes:
        raise UsageError(
            f"/{command.name} takes nothing behind it. Text that begins with a slash goes between "
            f"{BLOCK} and {BLOCK}."
        )
    return Call(command.name, rest)


def in_block(line: str) -> str | None:
    '''The text between `"""` and `"""`; None if the line is no such block.'''
    text = line.strip()
    if len(text) < 2 * len(BLOCK) or not (text.startswith(BLOCK) and text.endswith(BLOCK)):
        return None
    return text[len(BLOCK) : -len(BLOCK)].removeprefix("\n").removesuffix("\n")


def is_open(text: str) -> bool:
    '''Whether a `"""` block was begun and not ended, so that more lines belong to it.'''
    return text.lstrip().startswith(BLOCK) and in_block(text) is None
