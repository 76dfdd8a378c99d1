"""What a typed line means: text for the models, or a command."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from capt_local.decoding.options import GenerateOptions, Method
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


EVIDENCE = "evidence"


@dataclass(frozen=True, slots=True)
class Setting:
    """One parameter.

    Attributes:
        name: as it is typed; that of the flag.
        group: the field of `GenerateOptions` that holds it; empty for itself.
        field: of the group.
        read: from text to value; ValueError if it cannot be.
        takes: what may be given, for people.
    """

    name: str
    group: str
    field: str
    read: Callable[[str], Any]
    takes: str

    def of(self, options: GenerateOptions) -> str:
        """The present value as it would be typed."""
        value = getattr(getattr(options, self.group) if self.group else options, self.field)
        if isinstance(value, tuple):
            return ",".join(f"{each:g}" for each in value) or EVIDENCE
        return f"{value:g}" if isinstance(value, float) else str(value)


def _weights(text: str) -> tuple[float, ...]:
    return () if text == EVIDENCE else tuple(float(part) for part in text.split(","))


_METHODS = "|".join(Method)
_WEIGHTS = ("alphas", "powers")
SETTINGS = (
    Setting(
        "alpha", "combine", "alphas", _weights, f"a number, one for each pair, or '{EVIDENCE}'"
    ),
    Setting("weights", "combine", "powers", _weights, f"A,B,C or '{EVIDENCE}'"),
    Setting("plausibility", "combine", "plausibility", float, "a number from 0 to 1"),
    Setting("method", "", "method", Method, f"one of {_METHODS}"),
    Setting("max-tokens", "", "max_tokens", int, "a whole number"),
    Setting("temp", "sample", "temperature", float, "a number from 0"),
    Setting("top-k", "sample", "top_k", int, "a whole number; 0 keeps all"),
    Setting("top-p", "sample", "top_p", float, "a number above 0, at most 1"),
    Setting("min-p", "sample", "min_p", float, "a number from 0 to 1"),
    Setting("repeat-penalty", "sample", "repeat_penalty", float, "a number above 0"),
    Setting("repeat-last-n", "sample", "repeat_window", int, "a whole number"),
    Setting("seed", "sample", "seed", int, "a whole number"),
)
# Spellings that other tools taught people.
_SPELLINGS = {"temperature": "temp", "n": "max-tokens", "num-predict": "max-tokens"}


def changed(options: GenerateOptions, assignments: str) -> GenerateOptions:
    """The options with new values.

    Args:
        options: as they are.
        assignments: "name value" or any number of "name=value".

    Raises:
        UsageError: there is no such name, or the value has no meaning.
    """
    for name, value in _pairs(assignments):
        options = _with(options, _setting(name), value)
    return options


def differences(old: GenerateOptions, new: GenerateOptions) -> list[tuple[str, str, str]]:
    """(name, old value, new value) of the settings that are not the same."""
    pairs = [(each.name, each.of(old), each.of(new)) for each in SETTINGS]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _pairs(assignments: str) -> list[tuple[str, str]]:
    words = assignments.split()
    if len(words) == 2 and "=" not in assignments:
        return [(words[0], words[1])]
    pairs = [word.split("=", 1) for word in words]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise UsageError("A setting is given as NAME VALUE or NAME=VALUE, such as alpha 0.5.")
    return [(name, value) for name, value in pairs]


def _setting(name: str) -> Setting:
    name = name.lower().replace("_", "-").lstrip("-")
    name = _SPELLINGS.get(name, name)
    names = [each.name for each in SETTINGS]
    if name in names:
        return SETTINGS[names.index(name)]
    near = get_close_matches(name, names, 1, 0.5)
    hint = f"The nearest is {near[0]}." if near else f"Known: {', '.join(names)}."
    raise UsageError(f"There is no such setting. {hint}")


def _with(options: GenerateOptions, setting: Setting, text: str) -> GenerateOptions:
    try:
        value = setting.read(text)
    except ValueError:
        raise UsageError(f"{setting.name} takes {setting.takes}.") from None
    # The parameters check themselves, as they do for the flags.
    if not setting.group:
        return dataclasses.replace(options, **{setting.field: value})
    fields = {setting.field: value}
    if setting.field in _WEIGHTS:  # the one takes the place of the other
        fields = {**dict.fromkeys(_WEIGHTS, ()), **fields}
    group = dataclasses.replace(getattr(options, setting.group), **fields)
    return dataclasses.replace(options, **{setting.group: group})


_VALUES = {"method": tuple(Method), "alpha": (EVIDENCE,)}


@dataclass(frozen=True, slots=True)
class Offer:
    """One completion.

    Attributes:
        text: what stands there then.
        back: how many characters before the cursor it replaces.
    """

    text: str
    back: int


def offers(before: str) -> list[Offer]:
    """What can stand at the cursor.

    Args:
        before: the line up to the cursor.
    """
    if not before.startswith("/") or "\n" in before:
        return []
    name, space, rest = before.partition(" ")
    if not space:
        return _matching(before, (f"/{command.name}" for command in COMMANDS))
    if any(f"/{command.name}" == name and command.takes_path for command in COMMANDS):
        return _paths(rest)
    if name in ("/set", "/regen"):
        return _settings(rest, join="=" if name == "/regen" or "=" in rest else " ")
    return []


def path_of(text: str) -> Path:
    """The file that a command names; `~` is the home folder, that of nobody a name like others."""
    return Path(os.path.expanduser(text))


def _matching(typed: str, texts: Iterable[str]) -> list[Offer]:
    return [Offer(text, len(typed)) for text in texts if text.startswith(typed)]


def _settings(rest: str, join: str) -> list[Offer]:
    word = rest if join == " " else rest.split(" ")[-1]
    name, given, value = word.partition(join)
    if given:
        return _matching(value, _VALUES.get(name, ()))
    return _matching(word, (f"{each.name}{join}" for each in SETTINGS))


def _paths(typed: str) -> list[Offer]:
    """Files and folders; hidden ones only if the name typed is hidden."""
    folder, name = os.path.split(typed)
    found = []
    try:
        with os.scandir(path_of(folder or ".")) as entries:
            for entry in entries:
                hidden = entry.name.startswith(".") and not name.startswith(".")
                if entry.name.startswith(name) and not hidden:
                    found.append(entry.name + ("/" if entry.is_dir() else ""))
    except (OSError, ValueError, RuntimeError):  # no such folder, no such home
        return []
    return [Offer(text, len(name)) for text in sorted(found)]
