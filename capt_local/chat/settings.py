"""What `/set` changes: the parameters of the next answers, by the names of the flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from capt_local.decode.options import GenerateOptions, Method
from capt_local.errors import UsageError

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
_ALIASES = {"temperature": "temp", "n": "max-tokens", "num-predict": "max-tokens"}


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
    name = _ALIASES.get(name, name)
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
