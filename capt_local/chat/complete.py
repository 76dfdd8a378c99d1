"""What Tab offers: commands, settings, and files for the commands that take one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from capt_local.chat.commands import COMMANDS
from capt_local.chat.settings import EVIDENCE, SETTINGS
from capt_local.decode.options import Method

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
