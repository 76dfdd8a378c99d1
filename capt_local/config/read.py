"""The two files, read strictly: whatever is not understood is an error that names file and key.

A site's file that cannot be trusted or read is never passed over, since it may forbid something.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capt_local.config import places
from capt_local.config.limits import LEAST_ALPHA, Feature, Limits
from capt_local.errors import UsageError

LARGEST = 1 << 16
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_LARGEST_ALPHA = 8.0


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


@dataclass(frozen=True, slots=True)
class SiteFile(ConfigFile):
    """The site's file.

    Attributes:
        limits: what it forbids.
    """

    limits: Limits = field(default_factory=lambda: Limits(places.site_file()))


def read_site() -> SiteFile:
    """The site's file.

    Raises:
        UsageError: it is there, but others than root may have written it, or it is not understood.
    """
    path = places.site_file()
    found = _tables(path, {"options", "limits"}, owner=0, others=_OTHERS_WRITE)
    if found is None:
        return SiteFile(path, limits=Limits(path))
    return SiteFile(path, True, found["options"], _limits(path, found["limits"]))


def read_user() -> ConfigFile:
    """The user's file.

    Raises:
        UsageError: it is there, but another account may have written it, or it is not understood.
    """
    path = places.user_file()
    owner = os.getuid() if hasattr(os, "getuid") else 0
    found = _tables(path, {"options"}, owner=owner, others=stat.S_IWOTH)
    return ConfigFile(path) if found is None else ConfigFile(path, True, found["options"])


def _tables(
    path: Path, known: set[str], *, owner: int, others: int
) -> dict[str, dict[str, Any]] | None:
    data = _read(path, owner, others)
    if data is None:
        return None
    import tomllib  # seldom needed, and every verb comes by here

    try:
        whole = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}.") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not TOML{_line_of(error)}.") from None
    except ValueError:  # Python converts no more than some thousand digits
        raise UsageError(f"{path}: not TOML; a number in it has too many digits.") from None
    for key, value in whole.items():
        if key not in known:
            hint = " Limits are the site's alone." if key == "limits" else ""
            raise UsageError(
                f"{path}: there is no table {key[:40]!r}; known: {', '.join(sorted(known))}.{hint}"
            )
        if not isinstance(value, dict):
            raise UsageError(f"{path}: {key} is not a table; write [{key}] above its keys.")
    return {key: whole.get(key, {}) for key in known}


def _read(path: Path, owner: int, others: int) -> bytes | None:
    """The bytes of a file that only root or its owner can have written; None without one."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        with open(handle, "rb") as stream:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode):
                raise UsageError(f"{path} cannot be read: it is not a file.")
            if sys.platform != "win32":  # where neither owners nor modes are told this way
                _check_owner(path, about, owner, others)
                for folder in {path.parent, path.resolve().parent}:
                    _check_owner(folder, os.stat(folder), owner, others)
            data = stream.read(LARGEST + 1)
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


def _line_of(error: Exception) -> str:
    """Where the text stops being TOML; the parser's own words may repeat the text."""
    line = getattr(error, "lineno", None)
    if line is None:
        words = str(error).rpartition("(at line ")[2].partition(",")[0]
        line = words if words.isdecimal() else None
    return f" at line {line}" if line else ""


def _limits(path: Path, table: Mapping[str, Any]) -> Limits:
    features = [feature.value for feature in Feature]
    for key in table:
        if key not in ("forbid", "alpha", *features):
            known = ", ".join(["alpha", "forbid", *features])
            raise UsageError(f"{path}: there is no limits.{key[:40]!r}; known: {known}.")
    forbidden, alpha = _forbidden(path, table.get("forbid", [])), _alpha(path, table.get("alpha"))
    return Limits(path, forbidden | _switched_off(path, table, forbidden), alpha)


def _forbidden(path: Path, names: object) -> frozenset[Feature]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f'{path}: limits.forbid takes texts, as in ["transcripts"].')
    known = [feature.value for feature in Feature]
    for name in names:
        if name not in known:
            raise UsageError(
                f"{path}: limits.forbid has a name that is not known; known: {', '.join(known)}."
            )
    return frozenset(Feature(name) for name in names)


def _switched_off(
    path: Path, table: Mapping[str, Any], forbidden: frozenset[Feature]
) -> frozenset[Feature]:
    """What stands as `pull = false`, which says the same as its name among those of `forbid`."""
    given = {feature: table[feature.value] for feature in Feature if feature.value in table}
    for feature, value in given.items():
        if not isinstance(value, bool):
            raise UsageError(f"{path}: limits.{feature} takes true or false.")
        if value and feature in forbidden:
            raise UsageError(f"{path}: limits.{feature} is true, but limits.forbid names it.")
    return frozenset(feature for feature, value in given.items() if not value)


def _alpha(path: Path, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{path}: limits.alpha is not a number.")
    if not LEAST_ALPHA <= value <= _LARGEST_ALPHA:
        raise UsageError(
            f"{path}: limits.alpha is not between {LEAST_ALPHA:g} and {_LARGEST_ALPHA:g}; the "
            f"evidence of a prompt weighs by up to {LEAST_ALPHA:g} by itself."
        )
    return float(value)
