"""Options as they are declared, and their values from environment and files.

A flag wins over the environment, that over the user's file, that over the site's; also where two
options do not go together. What can be set is read off the declarations of the options: whatever
has an environment twin, and a key of a file is the long flag without its dashes. Besides, the
folders with bundles can be set (`config.model_folders`), which have no flag.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from capt_local.cli.verbs import VERBS, function
from capt_local.config import MODELS_VARIABLE, ConfigFile, Feature, SiteFile, read_site, read_user
from capt_local.errors import UsageError

SITE, USER = "SITE", "USER"
FILES = "DEFAULT_MAP"  # Click's name for what comes from files
# Where a value can come from, the strongest first; the names of Click and of the files.
_SOURCES = ("COMMANDLINE", "ENVIRONMENT", USER, SITE)
_PREFIX, _TESTS = "CAPT_LOCAL_", "CAPT_LOCAL_TEST_"
# Variables without an option.
_OTHERS = frozenset({MODELS_VARIABLE, "CAPT_LOCAL_DEBUG"})
# All options that have a twin: reading them off the declarations of all verbs takes a second, so a
# test compares.
KEYS = frozenset({
    "adapter", "allow-host", "allow-origin", "alpha", "api-key-file",
    "base", "best-of", "bundle", "ctx-size", "date", "delimiter", "device", "encoding", "expert",
    "expert-adapter", "expert-in-thoughts", "gpu-layers", "host", "id-field", "idle-timeout",
    "json", "kv-type", "logprobs", "max-tokens", "method", "min-p",
    "no-repetition-stop", "parallel", "plausibility", "port", "raw",
    "record-timeout", "repeat-last-n", "repeat-penalty", "require-sources", "scorer", "seed",
    "speed", "system", "target", "tasks", "temp", "tensor-split", "thoughts", "threads",
    "tls-cert", "tls-key", "top-k", "top-logprobs", "top-p", "verbose", "verify", "weights",
})  # fmt: skip
# Options that exclude each other: the set with the stronger source holds.
_RIVALS = (
    ({"bundle"}, {"target", "expert", "base", "expert_adapter"}),
    ({"raw"}, {"system", "system_file"}),
    ({"alpha"}, {"weights"}),
)
# Options that mean nothing without one of these: then their settings are not used.
_NEEDS = {"top_logprobs": {"json", "logprobs"}}

Verb = Callable[..., int]
_KEY = re.compile(r"[A-Za-z0-9_-]{1,40}")  # others may hold anything, line breaks too


@dataclass(frozen=True, slots=True)
class DeclaredOption:
    """An option as its declaration describes it.

    Attributes:
        name: of the field that holds it.
        key: in a file: the long flag without its dashes.
        variable: in the environment; None where it has no twin.
        kind: bool, int, float, str, Path, or an enumeration of texts.
        several: whether it takes a list of these.
        least: of a number, or None.
        most: likewise.
        default: what holds where nobody sets it, for people; empty for nothing.
        feature: which the site may forbid.
    """

    name: str
    key: str
    variable: str | None
    kind: type
    several: bool = False
    least: float | None = None
    most: float | None = None
    default: str = ""
    feature: Feature | None = None

    @property
    def takes(self) -> str:
        """Which values it takes, for people."""
        if issubclass(self.kind, Enum):
            return f"one of {', '.join(member.value for member in self.kind)}"
        ends = ""
        if self.least is not None:
            ends = f" from {self.least:g}" + (f" to {self.most:g}" if self.most else "")
        names = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}
        return names.get(self.kind, "a text") + ends

    def from_file(self, given: Any, file: ConfigFile) -> Any:
        """The value of a file as text for Click, which checks it as it checks a flag.

        Raises:
            UsageError: it is a relative path, or holds a NUL.
        """
        if isinstance(given, list):  # such as weights = [0.5, 1, 0.5]
            one = dataclasses.replace(self, several=False)
            each = [one.from_file(value, file) for value in given]
            return each if self.several else ",".join(map(str, each))
        if self.several:
            return self.from_file([given], file)
        if self.kind is bool and isinstance(given, bool):
            return given
        if self.kind is Path and not Path(str(given)).is_absolute():
            raise UsageError(f"{file.path}: options.{self.key} takes an absolute path.")
        if "\0" in str(given):
            raise UsageError(f"{file.path}: options.{self.key} takes {self.takes}.")
        return str(given)


@dataclass(frozen=True, slots=True)
class SettingsFiles:
    """The files of this machine and this user; the user's wins."""

    site: SiteFile
    user: ConfigFile

    @classmethod
    def read(cls) -> SettingsFiles:
        """Reads both. Raises UsageError: one is not understood, or not to be trusted."""
        return cls(read_site(), read_user())

    def named(self) -> Iterator[tuple[str, ConfigFile]]:
        """The files, the strongest last."""
        yield SITE, self.site
        yield USER, self.user

    def values(self, known: Mapping[str, DeclaredOption]) -> tuple[dict[str, Any], dict[str, str]]:
        """What the files say about the options of one verb, and which file says it.

        Raises:
            UsageError: a key is no setting of any verb, or a value cannot be one.
        """
        values: dict[str, Any] = {}
        origin: dict[str, str] = {}
        for layer, file in self.named():
            for key, given in file.options.items():
                if key not in KEYS and key != "models":  # those of other verbs are fine
                    named = f"options.{key}" if _KEY.fullmatch(key) else "such key in options"
                    raise UsageError(
                        f"{file.path}: there is no {named}; "
                        "'capt-local config show' lists the keys."
                    )
                if key in known and known[key].variable:
                    name = known[key].name
                    values[name], origin[name] = known[key].from_file(given, file), layer
        return values, origin


def groups_of(verb: Verb) -> dict[str, type[Any]]:
    """The groups of options of a verb, by the name of its parameter."""
    return {name: kind for name, kind in get_type_hints(verb).items() if name != "return"}


def options_of(verb: Verb) -> dict[str, DeclaredOption]:
    """The options of a verb, by their key in a file; its arguments are left out."""
    found = {}
    for group in groups_of(verb).values():
        hints = get_type_hints(group)
        for each in dataclasses.fields(group):
            if option := _declared(each, hints[each.name]):
                found[option.key] = option
    return found


def verbs() -> Iterator[Verb]:
    """The functions of all verbs; imports them."""
    return (function(name) for name, (module, _) in VERBS.items() if module)


def _declared(field: dataclasses.Field[Any], kind: Any) -> DeclaredOption | None:
    declared, names = field.metadata["declared"], field.metadata["names"]
    if not names:
        return None
    union = () if get_origin(kind) is list else get_args(kind)
    parts = [part for part in union if part is not NoneType] or [kind]
    several = get_origin(parts[0]) is list
    return DeclaredOption(
        name=field.name,
        key=max(names, key=len).lstrip("-"),
        variable=declared.envvar,
        kind=get_args(parts[0])[0] if several else parts[0],
        several=several,
        least=declared.min,
        most=declared.max,
        default=_default_text(field.default, declared.help or ""),
        feature=field.metadata["feature"],
    )


def _default_text(default: Any, help: str) -> str:
    """A default for people; where the declaration has none, what its help says of it."""
    if default in (None, "", dataclasses.MISSING):
        found = re.search(r"Default: (.*?)\.?$", help)
        return found[1] if found else ""
    if isinstance(default, bool):
        return "true" if default else "false"
    return f"{default:g}" if isinstance(default, float) else str(default)


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables of our prefix that nothing reads; a typing error is one of them."""
    known = {_PREFIX + key.upper().replace("-", "_") for key in KEYS} | _OTHERS
    return sorted(
        name
        for name in environment
        if name.startswith(_PREFIX) and not name.startswith(_TESTS) and name not in known
    )


def overruled(values: Mapping[str, Any], origin: Mapping[str, str]) -> set[str]:
    """Options whose values do not count, since they do not go with those of a stronger source.

    Args:
        values: of all options of a verb, by name.
        origin: the source of each, by name.
    """

    def rank(names: set[str]) -> int:
        sources = [origin[name] for name in names if origin.get(name) in _SOURCES]
        return min(map(_SOURCES.index, sources), default=len(_SOURCES))

    gone: set[str] = set()
    for rivals in _RIVALS:
        ranks = [rank(names) for names in rivals]
        if len(_SOURCES) not in ranks and ranks[0] != ranks[1]:
            gone |= rivals[ranks[0] < ranks[1]]
    for name, needed in _NEEDS.items():
        if origin.get(name) != _SOURCES[0] and not any(values.get(each) for each in needed):
            gone.add(name)
    return gone & values.keys()
