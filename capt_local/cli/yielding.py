"""A flag wins over the environment, that over files, also where two options do not go together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any, TypeVar

from capt_local.cli.options import (
    ModelFlags,
    OutputFlags,
    OwnTextFlags,
    PromptFlags,
    SideBySideFlags,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    _Group = TypeVar("_Group", bound=DataclassInstance)
else:
    _Group = TypeVar("_Group")

_FILES = frozenset({"target", "expert", "base"})
# Where a value can come from, the strongest first; the names of Click and of `cli.settings`.
_SOURCES = ("COMMANDLINE", "ENVIRONMENT", "USER", "SITE")


def settled(group: _Group, origin: Mapping[str, str]) -> _Group:
    """The group without those values that do not go with one of a stronger source.

    Args:
        group: of options.
        origin: by option, the name of its source.
    """
    rank = {name: _SOURCES.index(source) for name, source in origin.items() if source in _SOURCES}
    gone: set[str] = set()
    for strength in range(len(_SOURCES) - 1):
        said = {name for name, place in rank.items() if place == strength} - gone
        weaker = {name for name, place in rank.items() if place > strength}
        gone |= _yielding(group, said) & weaker
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(group)}
    return dataclasses.replace(group, **{name: defaults[name] for name in gone})


def _yielding(group: object, typed: Set[str]) -> Set[str]:
    """Options that yield to those that were given by a stronger source, typed ones above all."""
    match group:
        case ModelFlags():
            return _rivals(typed, {"bundle"}, _FILES)
        case OwnTextFlags(prompt=None, file=None):
            return {"raw", "system"}
        case PromptFlags():
            return _rivals(typed, {"raw"}, {"system"})
        case SideBySideFlags():
            return {"method"}
        case OutputFlags(json=False):
            return {"top_logprobs"}
    return set()


def _rivals(typed: Set[str], ones: Set[str], others: Set[str]) -> Set[str]:
    """Each of two sets of options yields to what was typed of the other."""
    return (others if typed & ones else set()) | (ones if typed & others else set())
