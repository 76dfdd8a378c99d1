"""Values of options that come from files: which settings there are, and what the files say.

What can be set is read off the declarations of the options: whatever has an environment twin, and
a key of a file is the long flag without its dashes. A flag wins over the environment, that over the
user's file, that over the site's; also where two options do not go together. Besides, the folders
with bundles can be set, which have a variable and no flag.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from capt_local.cli.app import VERBS, function
from capt_local.cli.options import (
    ModelFlags,
    OutputFlags,
    OwnTextFlags,
    PromptFlags,
    SideBySideFlags,
)
from capt_local.config import ConfigFile, SiteFile, SiteLimits, read_site, read_user
from capt_local.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SITE, USER = "SITE", "USER"
# Where a value can come from, the strongest first; the names of Click and of the files.
_SOURCES = ("COMMANDLINE", "ENVIRONMENT", USER, SITE)
VARIABLE = "CAPT_LOCAL_MODELS"  # as `bundles.store` has it, which is not loaded for that
_PREFIX, _TESTS = "CAPT_LOCAL_", "CAPT_LOCAL_TEST_"
# Variables without an option.
_OTHERS = frozenset({VARIABLE, "CAPT_LOCAL_DEBUG", "CAPT_LOCAL_HUB_TOKEN"})
# All options that have a twin: reading them off the declarations of all verbs takes a second, so a
# test compares.
KEYS = frozenset({
    "alignment", "alpha", "audit", "base", "bundle", "ctx-size", "date", "delimiter",
    "expert", "expert-adapter", "expert-in-thoughts", "gpu-layers", "id-field",
    "idle-timeout", "input-format", "json", "logprobs", "max-tokens", "method", "min-p",
    "mirror", "no-healing", "no-long-tokens", "no-repetition-stop", "no-verify", "offline",
    "parallel", "plausibility", "raw", "record-timeout", "repeat-last-n", "repeat-penalty",
    "seed", "speed", "system", "target", "temp", "thoughts", "threads", "top-k",
    "top-logprobs", "top-p", "verbose", "verify", "weights",
})  # fmt: skip

Verb = Callable[..., int]
_Group = TypeVar("_Group", bound="DataclassInstance")
_KEY = re.compile(r"[A-Za-z0-9_-]{1,40}")  # others may hold anything, line breaks too


@dataclass(frozen=True, slots=True)
class Layers:
    """The files of this machine and this user; the user's wins."""

    site: SiteFile
    user: ConfigFile

    @classmethod
    def read(cls) -> Layers:
        """Reads both.

        Raises:
            UsageError: one is not understood, or not to be trusted.
        """
        return cls(read_site(), read_user())

    @property
    def limits(self) -> SiteLimits:
        """What the site forbids."""
        return self.site.limits

    def named(self) -> Iterator[tuple[str, ConfigFile]]:
        """The layers, the strongest last."""
        yield SITE, self.site
        yield USER, self.user

    def given(self, verb: Verb) -> Given:
        """What the files say about the options of one verb.

        Raises:
            UsageError: a key is no setting of any verb, or a value is not one that it takes.
        """
        values: dict[str, Any] = {}
        origin: dict[str, str] = {}
        known = settable(verb)
        for layer, file in self.named():
            _check_known(file)
            for key, value in file.options.items():
                if key in known:
                    known[key].check(value, file)
                    values[known[key].name] = value
                    origin[known[key].name] = layer
        return Given(values, origin, self.limits, self.stores())

    def stores(self) -> tuple[str, ...]:
        """Folders with bundles that the files name; the user's file wins.

        Raises:
            UsageError: they are not given as paths from the root on.
        """
        found: tuple[str, ...] = ()
        for _, file in self.named():
            if STORES.key in file.options:
                value = file.options[STORES.key]
                STORES.check(value, file)
                found = tuple(value)
        return found


@dataclass(frozen=True, slots=True)
class Given:
    """What files say about one verb.

    Attributes:
        values: by the name of the parameter.
        origin: which layer each is from.
        limits: what the site forbids.
        stores: folders with bundles.
    """

    values: Mapping[str, Any]
    origin: Mapping[str, str]
    limits: SiteLimits
    stores: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OptionSetting:
    """An option that has a twin, as its declaration tells.

    Attributes:
        name: of the field that holds it.
        key: in a file: the long flag without its dashes.
        variable: in the environment.
        kind: bool, int, float, str, Path, or an enumeration of texts.
        several: whether it takes a list of these.
        least: of a number, or None.
        most: likewise.
        default: what holds where nobody sets it, for people; empty for nothing.
    """

    name: str
    key: str
    variable: str
    kind: type
    several: bool
    least: float | None = None
    most: float | None = None
    default: str = ""

    def check(self, value: object, file: ConfigFile) -> None:
        """Refuses a value of a file that the option does not take.

        Raises:
            UsageError: it is such.
        """
        if self.several and not isinstance(value, list):
            self._refuse(file, "takes a list, as in [...]")
        for one in value if isinstance(value, list) and self.several else [value]:
            if not self._is_of_kind(one):
                self._refuse(file, f"takes {self._wanted()}")
            if self.kind is Path and not Path(str(one)).is_absolute():
                self._refuse(file, "takes a path from the root on")
            if self is STORES and os.pathsep in str(one):
                self._refuse(file, f"takes paths without {os.pathsep!r}")
            if not self._is_allowed(one):
                self._refuse(file, "has a value that is not allowed")

    def _is_of_kind(self, value: object) -> bool:
        if self.kind is bool:
            return isinstance(value, bool)
        if isinstance(value, bool):
            return False
        if self.kind is float:
            return isinstance(value, int | float)
        return isinstance(value, int if self.kind is int else str)

    def _is_allowed(self, value: Any) -> bool:
        if issubclass(self.kind, Enum):
            return value in [member.value for member in self.kind]
        if self.kind in (int, float):
            low, high = self.least, self.most
            return (low is None or value >= low) and (high is None or value <= high)
        return not isinstance(value, str) or "\0" not in value

    def _wanted(self) -> str:
        names = {bool: "true or false", int: "a whole number", float: "a number"}
        return names.get(self.kind, 'a text, as in "..."')

    def _refuse(self, file: ConfigFile, problem: str) -> NoReturn:
        raise UsageError(f"{file.path}: options.{self.key} {problem}.")


STORES = OptionSetting("models", "models", VARIABLE, Path, several=True)
"""Folders with bundles: the one setting without a flag."""


def settable(verb: Verb) -> dict[str, OptionSetting]:
    """The options of a verb that have a twin, by their key in a file."""
    groups = [kind for name, kind in get_type_hints(verb).items() if name != "return"]
    found = (
        _setting(name, hint, _default(kind, name))
        for kind in groups
        for name, hint in get_type_hints(kind, include_extras=True).items()
    )
    return {each.key: each for each in found if each is not None}


def verbs() -> Iterator[Verb]:
    """The functions of all verbs; imports them."""
    for verb in VERBS:
        for leaf in verb.verbs or (verb,):
            yield function(leaf, *((verb.name,) if verb.verbs else ()))


def _default(group: type[Any], name: str) -> Any:
    fields: dict[str, dataclasses.Field[Any]] = getattr(group, "__dataclass_fields__", {})
    value = fields[name].default if name in fields else None
    return None if value is dataclasses.MISSING else value


def _setting(name: str, hint: Any, default: Any = None) -> OptionSetting | None:
    kind, declared = get_args(hint)[0], hint.__metadata__[0]
    if not declared.envvar:
        return None
    union = () if get_origin(kind) is list else get_args(kind)
    parts = [part for part in union if part is not NoneType] or [kind]
    several = get_origin(parts[0]) is list
    # In an annotation the first flag stands where Typer keeps the default elsewhere.
    flags = [flag for flag in (declared.default, *declared.param_decls) if isinstance(flag, str)]
    long = max((flag.partition("/")[0] for flag in flags), key=len)
    return OptionSetting(
        name=name,
        key=long.lstrip("-"),
        variable=declared.envvar,
        kind=get_args(parts[0])[0] if several else parts[0],
        several=several,
        least=declared.min,
        most=declared.max,
        default=_spelled(default, declared.help or ""),
    )


def _spelled(default: Any, help: str) -> str:
    """A default for people; where the declaration has none, what its help says of it."""
    if default is None or default == "":
        found = re.search(r"Default: (.*?)\.?$", help)
        return found[1] if found else ""
    if isinstance(default, bool):
        return "true" if default else "false"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _check_known(file: ConfigFile) -> None:
    """Refuses keys that no verb has; those of other verbs are fine."""
    for key in sorted(file.options.keys() - KEYS - {STORES.key}):
        named = f"options.{key}" if _KEY.fullmatch(key) else "such key in options"
        raise UsageError(
            f"{file.path}: there is no {named}; 'capt-local config show' lists the keys."
        )


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables of our prefix that nothing reads; a typing error is one of them."""
    known = {_PREFIX + key.upper().replace("-", "_") for key in KEYS} | _OTHERS
    return sorted(
        name
        for name in environment
        if name.startswith(_PREFIX) and not name.startswith(_TESTS) and name not in known
    )


def by_precedence(group: _Group, origin: Mapping[str, str]) -> _Group:
    """The group without those values that do not go with one of a stronger source.

    Args:
        group: of options.
        origin: by option, the name of its source.
    """
    rank = {name: _SOURCES.index(source) for name, source in origin.items() if source in _SOURCES}
    gone: set[str] = set()
    for strength in range(len(_SOURCES) - 1):
        given = {name for name, place in rank.items() if place == strength} - gone
        weaker = {name for name, place in rank.items() if place > strength}
        gone |= _overruled(group, given) & weaker
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(group)}
    return dataclasses.replace(group, **{name: defaults[name] for name in gone})


def _overruled(group: object, given: Set[str]) -> Set[str]:
    """Options that do not go with those of a stronger source, so that their values are dropped."""
    match group:
        case ModelFlags():
            return _rivals(given, {"bundle"}, {"target", "expert", "base"})
        case OwnTextFlags(prompt=None, file=None):
            return {"raw", "system"}
        case PromptFlags():
            return _rivals(given, {"raw"}, {"system"})
        case SideBySideFlags():
            return {"method"}
        case OutputFlags(json=False):
            return {"top_logprobs"}
    return set()


def _rivals(given: Set[str], ones: Set[str], others: Set[str]) -> Set[str]:
    """Each of two sets of options is overruled by what was given of the other."""
    return (others if given & ones else set()) | (ones if given & others else set())


@contextlib.contextmanager
def with_stores(folders: Sequence[str]) -> Iterator[None]:
    """Lets the store look for bundles in these folders too, until the end of the block.

    They go into the environment, where every process that is started finds them; a variable that
    the user has set wins.

    Args:
        folders: from the root on; without any, nothing is changed.
    """
    if not folders or os.environ.get(VARIABLE):
        yield
        return
    os.environ[VARIABLE] = os.pathsep.join(folders)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
