"""A flag wins over the environment, also where it is another option that it does not go with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any, TypeVar

from capt_local.cli.model_flags import ModelFlags
from capt_local.cli.options import OutputFlags, OwnTextFlags, PromptFlags, SideBySideFlags

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    _Group = TypeVar("_Group", bound=DataclassInstance)
else:
    _Group = TypeVar("_Group")

_FILES = frozenset({"target", "expert", "base"})


def settled(group: _Group, origin: Mapping[str, str]) -> _Group:
    """The group without those values of the environment that do not go with what was typed.

    Args:
        group: of options.
        origin: by option, the name of Click's `ParameterSource`.
    """
    typed = {name for name, source in origin.items() if source == "COMMANDLINE"}
    inherited = {name for name, source in origin.items() if source == "ENVIRONMENT"}
    gone = _yielding(group, typed) & inherited
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(group)}
    return dataclasses.replace(group, **{name: defaults[name] for name in gone})


def _yielding(group: object, typed: Set[str]) -> Set[str]:
    """Options that count only if they were typed."""
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
