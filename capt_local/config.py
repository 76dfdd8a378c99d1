"""The settings files of site and user, and the limits of the site.

Both are TOML with a table `options`; the site's may have `limits`. They are read strictly: whatever
is not understood is an error that names file and key. A site's file that cannot be trusted or read
is never ignored, since it may forbid something. The site's path is fixed: nothing in the
environment of a user moves it, or its limits would be worth nothing.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
from platformdirs import user_config_path

from capt_local.errors import UsageError
from capt_local.strict_json import ParseError, convert, open_regular

MODELS_VARIABLE = "CAPT_LOCAL_MODELS"
LARGEST = 1 << 16
_NAME, _KEYS = "config.toml", "keys"
KEY = re.compile(r"[A-Za-z0-9_-]{1,40}")  # others may hold anything, line breaks too


class Feature(StrEnum):
    """The features that a site can forbid."""

    TRANSCRIPTS = "transcripts"
    """Files that hold conversations: /save."""
    REPORTS = "reports"
    """Pages about answers: --html."""
    NETWORK = "network"
    """Whatever opens a connection, or a port that other machines can reach."""
    SERVE = "serve"
    """The server of `serve`, on this machine alone, too."""
    PULL = "pull"
    """Downloads of models: `models pull`. Where the network is forbidden, so are they."""
    UNSIGNED = "unsigned-bundles"
    """Models that no key of the site has signed: unsigned bundles, files given by their paths."""


_WIDER = {Feature.PULL: Feature.NETWORK}


class _LimitsTable(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    """The table `limits`: `pull = false` means the same as its name in `forbid`."""

    forbid: list[Feature] = []
    # At least 1: weights from the evidence of a prompt may be up to 1, and are not limited.
    alpha: Annotated[float, msgspec.Meta(ge=1, le=8)] | None = None
    transcripts: bool = True
    reports: bool = True
    network: bool = True
    serve: bool = True
    pull: bool = True
    unsigned_bundles: bool = True


def site_file() -> Path:
    """The file of the machine's administrator; it need not exist."""
    if sys.platform == "darwin":
        return Path("/Library/Application Support/capt-local") / _NAME
    return Path("/etc/capt-local") / _NAME


def user_file() -> Path:
    """The file of the user, as $XDG_CONFIG_HOME/capt-local/config.toml; it need not exist."""
    return user_config_path("capt-local", appauthor=False) / _NAME


def key_folders() -> tuple[Path, Path]:
    """Where trusted public keys lie: the site's, the user's; they need not exist."""
    return site_file().parent / _KEYS, user_file().parent / _KEYS


def model_folders() -> tuple[Path, ...]:
    """Folders with bundles: of the environment, else of the user's file, else of the site's.

    Raises:
        UsageError: a file is not understood, or does not name them as absolute paths.
    """
    if given := os.environ.get(MODELS_VARIABLE):
        return tuple(Path(os.path.expanduser(text)) for text in given.split(os.pathsep) if text)
    return next((file.models for file in (read_user(), read_site()) if file.models), ())


@dataclass(frozen=True, slots=True)
class SiteLimits:
    """The limits of a site.

    Attributes:
        file: that they come from, for errors.
        forbidden: the forbidden features.
        alpha: the largest fixed weight of an expert or base; None: the program's own limit.
    """

    file: Path
    forbidden: frozenset[Feature] = frozenset()
    alpha: float | None = None

    def forbids(self, feature: Feature) -> bool:
        """Whether a feature is forbidden, by its own name or a more general one."""
        return bool(self.forbidden & {feature, _WIDER.get(feature, feature)})

    def refuse(self, feature: Feature, what: str) -> None:
        """Refuses a forbidden feature; `what` is the flag or command that needs it.

        Raises:
            UsageError: it is forbidden.
        """
        if self.forbids(feature):
            named = feature if feature in self.forbidden else _WIDER[feature]
            raise UsageError(f"{what} is forbidden here: {self.file} forbids {named}.")

    def check_weights(self, weights: Iterable[float]) -> None:
        """Refuses fixed weights or exponents beyond the site's limit.

        Raises:
            UsageError: one is.
        """
        if self.alpha is not None and any(abs(weight) > self.alpha for weight in weights):
            raise UsageError(
                f"A weight beyond {self.alpha:g} is forbidden here: limits.alpha in {self.file}."
            )


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """One of the files.

    Attributes:
        path: where it is, or would be.
        exists: whether it is there.
        options: values by the name of a flag without its dashes, of TOML's types.
    """

    path: Path
    exists: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def models(self) -> tuple[Path, ...]:
        """Its folders with bundles: the one setting without a flag.

        Raises:
            UsageError: it is no list of absolute paths.
        """
        try:
            given = convert(self.options.get("models", []), list[str], "options.models")
        except ParseError:
            raise UsageError(f"{self.path}: options.models takes a list of paths.") from None
        if not all(Path(one).is_absolute() for one in given):
            raise UsageError(f"{self.path}: options.models takes absolute paths.")
        return tuple(map(Path, given))


@dataclass(frozen=True, slots=True)
class SiteFile(ConfigFile):
    """The site's file, with what it forbids."""

    limits: SiteLimits = field(default_factory=lambda: SiteLimits(site_file()))


def read_site() -> SiteFile:
    """The site's file.

    Raises:
        UsageError: it is there, but others than root may have written it, or it is not understood.
    """
    path = site_file()
    found = _tables(path, ("options", "limits"), owner=0, others=stat.S_IWGRP | stat.S_IWOTH)
    if found is None:
        return SiteFile(path, limits=SiteLimits(path))
    try:
        table = convert(found["limits"], _LimitsTable, "limits")
    except ParseError as error:
        raise UsageError(
            f"{path}: {error}; what can be forbidden is {', '.join(sorted(Feature))}."
        ) from None
    allowed = msgspec.to_builtins(table)
    forbidden = {feature for feature in Feature if not allowed[feature]}
    limits = SiteLimits(path, frozenset(forbidden.union(table.forbid)), table.alpha)
    return SiteFile(path, True, found["options"], limits)


def read_user() -> ConfigFile:
    """The user's file.

    Raises:
        UsageError: it is there, but another account may have written it, or it is not understood.
    """
    path = user_file()
    found = _tables(path, ("options",), owner=os.getuid(), others=stat.S_IWOTH)
    return ConfigFile(path) if found is None else ConfigFile(path, True, found["options"])


def _tables(
    path: Path, known: tuple[str, ...], *, owner: int, others: int
) -> dict[str, dict[str, Any]] | None:
    """The tables of a file; None without one."""
    data = _read(path, owner, others)
    if data is None:
        return None
    import tomllib  # every verb comes by here, and most machines have no such file

    try:
        whole = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}.") from None
    except (ValueError, RecursionError) as error:  # the parser's own words may repeat the text
        line = re.search(r"\(at line (\d+),", str(error))
        raise UsageError(f"{path}: not TOML{f' at line {line[1]}' if line else ''}.") from None
    for key, value in whole.items():
        named = f"the key {key}" if KEY.fullmatch(key) else "a key"
        if key not in known:
            where = "; limits go into the site's file" if key == "limits" else ""
            where = where or f"; settings stand under [{'] or ['.join(known)}]"
            raise UsageError(f"{path}: {named} is not known{where}.")
        if not isinstance(value, dict):
            raise UsageError(f"{path}: {named} is not a table; write [{key}] above its keys.")
    return {key: whole.get(key, {}) for key in known}


def _read(path: Path, owner: int, others: int) -> bytes | None:
    """The bytes of a file that only root or its owner can have written; None without one."""
    try:
        with open_regular(path) as stream:
            _check_owner(path, os.fstat(stream.fileno()), owner, others)
            for folder in {path.parent, path.resolve().parent}:
                _check_owner(folder, os.stat(folder), owner, others)
            data = stream.read(LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    if len(data) > LARGEST:
        raise UsageError(f"{path} is larger than {LARGEST >> 10} KiB.")
    return data


def _check_owner(path: Path, about: os.stat_result, owner: int, others: int) -> None:
    who = "root" if owner == 0 else "you or root"
    if about.st_uid not in (0, owner):
        raise UsageError(f"{path} does not belong to {who}, so it is not trusted: chown it.")
    if about.st_mode & others:
        mode = "go-w" if others & stat.S_IWGRP else "o-w"
        raise UsageError(f"{path} can be written by others than {who}: chmod {mode} it.")
