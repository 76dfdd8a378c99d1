"""Conversations, and the parser of typed lines (text for the models, or a command). Prints nothing.

Conversations are immutable: a failed turn changes nothing, and removing a turn gives the earlier
conversation.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capt_local.decoding.options import GenerateOptions, Method, with_arguments
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message
from capt_local.report.json import REPORT_CANDIDATES, Answer, answer_object, dumps

if TYPE_CHECKING:
    from capt_local.bundles.manifest import Bundle


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer."""

    question: str  # as the models got it, notes included
    answer: Answer
    options: GenerateOptions  # how it was made

    @property
    def reply(self) -> str:
        """The answer as text, the same as was shown; bytes that are no character are U+FFFD."""
        return self.answer.text.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A system text before all turns (None for nothing), and the turns, oldest first."""

    system: str | None = None
    turns: tuple[Turn, ...] = ()

    def messages(self) -> list[Message]:
        found = [Message("system", self.system)] if self.system is not None else []
        for turn in self.turns:
            found += [Message("user", turn.question), Message("assistant", turn.reply)]
        return found

    def asking(self, question: str) -> list[Message]:
        return [*self.messages(), Message("user", question)]

    def plus(self, turn: Turn) -> Conversation:
        return replace(self, turns=(*self.turns, turn))

    def without_last(self) -> Conversation:
        self.last()
        return replace(self, turns=self.turns[:-1])

    def last(self) -> Turn:
        """The last turn. Raises UsageError where there is none."""
        if not self.turns:
            raise UsageError("Nothing has been asked yet.")
        return self.turns[-1]


def with_notes(notes: Iterable[str], typed: str) -> str:
    """A question with the notes that it is about in front, an empty line between them."""
    return "\n\n".join([*notes, *([typed] if typed.strip() else [])])


def transcript(conversation: Conversation, bundle: Bundle, provenance: Mapping[str, Any]) -> str:
    """A conversation as JSON Lines: one about the models, the system text, one for each turn."""
    events: list[dict[str, Any]] = [
        {
            "type": "capt-local chat",
            "schema": 1,
            "bundle": bundle.id,
            "models": dict(bundle.digests),
            "provenance": dict(provenance),
            "ai_label": "AIRPT",
            "human_review": "none",
        }
    ]
    if conversation.system is not None:
        events.append({"type": "system", "text": conversation.system})
    for turn in conversation.turns:
        answer = answer_object(turn.answer, top_logprobs=REPORT_CANDIDATES)
        events.append({"type": "turn", "question": turn.question, "answer": answer})
    return "".join(dumps(event) + "\n" for event in events)


_QUOTE = "Text that begins with a slash needs a space in front of it."


@dataclass(frozen=True, slots=True)
class Command:
    """A command as the help shows it; `takes_path` where a file stands behind it."""

    name: str
    takes: str
    summary: str
    takes_path: bool = False


COMMANDS = (
    Command("help", "", "this list"),
    Command("why", "[N]", "where the expert changed the last answer (or that of turn N)"),
    Command("regen", "[NAME=VALUE ...]", "answer again; with NAME=VALUE to compare, side by side"),
    Command("undo", "", "remove the last turn, or a note that waits for its question"),
    Command("clear", "", "forget the conversation, the notes and the typed lines"),
    Command("system", "[TEXT]", 'show or change the system text; "" removes it'),
    Command("set", "[NAME VALUE]", "show or change how answers are made: alpha, temp, method, ..."),
    Command("context", "", "how full the contexts of the models are, and the turns"),
    Command("read", "FILE", "put a note (PDF, DOCX, text) before the next question", True),
    Command("save", "FILE", "write the conversation (JSON Lines, mode 0600)", takes_path=True),
    Command("exit", "", "leave (also Ctrl-D)"),
)
_BY_NAME = {command.name: command for command in COMMANDS}
_ALIASES = {"quit": "exit", "bye": "exit", "q": "exit", "?": "help", "h": "help"}
_CALL = re.compile(r"/(?:([a-zA-Z?]\S*)(?:\s+(.*))?)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Call:
    """A typed command and its argument."""

    name: str
    rest: str = ""


def understood(line: str) -> Call | str:
    """Parses a typed line: a command, or text for the models.

    Several lines that begin with a slash but not with a command are text.

    Raises:
        UsageError: one line that begins with a slash, but with no command; or text behind a
            command that takes none. It is not repeated.
    """
    found = _CALL.fullmatch(line) if line.startswith("/") else None
    if found is None:
        return line
    typed = (found[1] or "").lower()
    name, rest = _ALIASES.get(typed, typed), (found[2] or "").strip()
    if name in _BY_NAME:
        # A pasted text that begins like this must not remove the conversation.
        if rest and not _BY_NAME[name].takes:
            raise UsageError(f"/{name} takes nothing behind it. {_QUOTE}")
        return Call(name, rest)
    if "\n" in line:
        return line
    near = get_close_matches(name, _BY_NAME, 1, 0.5)
    hint = f"the nearest is /{near[0]}" if near else "/help lists them"
    raise UsageError(f"There is no such command; {hint}. {_QUOTE}")


# Settings.

EVIDENCE = "evidence"


@dataclass(frozen=True, slots=True)
class Setting:
    """One parameter."""

    name: str  # as it is typed; that of the flag
    argument: str  # its name in `with_arguments`
    place: str  # where `GenerateOptions` has it
    read: Callable[[str], Any]  # from text to value; ValueError if it cannot be
    takes: str  # for people

    def of(self, options: GenerateOptions) -> str:
        """The present value as it would be typed."""
        value = attrgetter(self.place)(options)
        if self.argument == "adapter_scales":
            each = (f"{role}:{','.join(f'{one:g}' for one in own)}" for role, own in value)
            return ";".join(each) or "loaded"
        if isinstance(value, tuple):
            return ",".join(f"{each:g}" for each in value) or EVIDENCE
        return f"{value:g}" if isinstance(value, float) else str(value)


def _weights(text: str) -> tuple[float, ...]:
    return () if text == EVIDENCE else tuple(float(part) for part in text.split(","))


def _scales(text: str) -> dict[str, tuple[float, ...]]:
    pairs = [] if text == "loaded" else [part.partition(":") for part in text.split(";")]
    return {role: tuple(float(one) for one in own.split(",")) for role, _, own in pairs}


_ALPHA = f"a number, one for each pair, or '{EVIDENCE}'"
_ABC = f"A,B,C or '{EVIDENCE}'"
_SHARE = "a number from 0 to 1"
_WHOLE = "a whole number"
_METHODS = f"one of {'|'.join(Method)}"
_SCALES = "ROLE:SCALE,...;... or 'loaded'"
SETTINGS = (
    Setting("alpha", "alpha", "combine.alphas", _weights, _ALPHA),
    Setting("weights", "weights", "combine.powers", _weights, _ABC),
    Setting("plausibility", "plausibility", "combine.plausibility", float, _SHARE),
    Setting("method", "method", "method", Method, _METHODS),
    Setting("max-tokens", "max_tokens", "max_tokens", int, _WHOLE),
    Setting("temp", "temperature", "sample.temperature", float, "a number from 0"),
    Setting("top-k", "top_k", "sample.top_k", int, f"{_WHOLE}; 0 keeps all"),
    Setting("top-p", "top_p", "sample.top_p", float, "a number above 0, at most 1"),
    Setting("min-p", "min_p", "sample.min_p", float, _SHARE),
    Setting("repeat-penalty", "repeat_penalty", "sample.repeat_penalty", float, "a number above 0"),
    Setting("repeat-last-n", "repeat_window", "sample.repeat_window", int, _WHOLE),
    Setting("seed", "seed", "sample.seed", int, _WHOLE),
    Setting("adapter-scales", "adapter_scales", "adapter_scales", _scales, _SCALES),
)
_SETTINGS = {setting.name: setting for setting in SETTINGS}
# Names of these settings in other tools.
_SPELLINGS = {"temperature": "temp", "n": "max-tokens", "num-predict": "max-tokens"}
_VALUES = {"method": tuple(Method), "alpha": (EVIDENCE,)}


def changed(options: GenerateOptions, assignments: str) -> GenerateOptions:
    """The options with new values: "name value", or any number of "name=value".

    Raises:
        UsageError: there is no such name, or the value has no meaning.
    """
    words = assignments.split()
    pairs = [word.split("=", 1) for word in words]
    if len(words) == 2 and "=" not in assignments:
        pairs = [words]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise UsageError("A setting is given as NAME VALUE or NAME=VALUE, such as alpha 0.5.")
    for name, text in pairs:
        name = name.lower().replace("_", "-").lstrip("-")
        setting = _SETTINGS.get(_SPELLINGS.get(name, name))
        if setting is None:
            near = get_close_matches(name, _SETTINGS, 1, 0.5)
            hint = f"The nearest is {near[0]}." if near else f"Known: {', '.join(_SETTINGS)}."
            raise UsageError(f"There is no such setting. {hint}")
        try:
            value = setting.read(text)
        except ValueError:
            raise UsageError(f"{setting.name} takes {setting.takes}.") from None
        # The parameters check themselves, as they do for the flags.
        options = with_arguments(options, {setting.argument: value})
    return options


def differences(old: GenerateOptions, new: GenerateOptions) -> list[tuple[str, str, str]]:
    """(name, old value, new value) of the settings that are not the same."""
    pairs = [(each.name, each.of(old), each.of(new)) for each in SETTINGS]
    return [pair for pair in pairs if pair[1] != pair[2]]


# Completion.


def offers(before: str) -> list[tuple[str, int]]:
    """Completions for the text `before` the cursor: (text, number of characters it replaces)."""
    if not before.startswith("/") or "\n" in before:
        return []
    name, space, rest = before.partition(" ")
    if not space:
        return _matching(before, (f"/{name}" for name in _BY_NAME))
    command = _BY_NAME.get(name[1:])
    if command is not None and command.takes_path:
        return _paths(rest)
    if name in ("/set", "/regen"):
        join = "=" if name == "/regen" or "=" in rest else " "
        word = rest if join == " " else rest.split(" ")[-1]
        name, given, value = word.partition(join)
        if given:
            return _matching(value, _VALUES.get(name, ()))
        return _matching(word, (f"{name}{join}" for name in _SETTINGS))
    return []


def path_of(text: str) -> Path:
    """The path that a command names; `~` is expanded, an unknown `~user` is left as it is."""
    return Path(os.path.expanduser(text))


def _matching(typed: str, texts: Iterable[str]) -> list[tuple[str, int]]:
    return [(text, len(typed)) for text in texts if text.startswith(typed)]


def _paths(typed: str) -> list[tuple[str, int]]:
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
    return [(text, len(name)) for text in sorted(found)]
