"""`capt-local config show`: every setting, its value, and where that comes from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from capt_local.cli.exits import ExitCode
from capt_local.cli.options import ViewFlags, option
from capt_local.cli.settings import (
    STORES,
    Layers,
    OptionSetting,
    settable,
    unknown_variables,
    verbs,
)
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Table


@dataclass(frozen=True, slots=True)
class ConfigShowFlags:
    """How it is told."""

    json: Annotated[bool, option("--json", twin="JSON", help="Write a JSON object.")] = False


@dataclass(frozen=True, slots=True)
class SettingValue:
    """A setting and what it is now.

    Attributes:
        setting: as it is declared.
        value: as it stands where it is set; None where nobody sets it.
        source: "site file", "user file", "environment" or "default".
    """

    setting: OptionSetting
    value: Any
    source: str


def config_show(how: ConfigShowFlags, view: ViewFlags) -> int:
    """Every setting, its value, and whether site, user or environment say so.

    A flag wins over the environment, that over the user's file, that over the site's. Values of
    the environment are told as they are; a verb checks them when it uses them.
    """
    screen = Screen.standard(view.verbose)
    layers = Layers.read()
    environment = dict(os.environ)
    if environment.get(STORES.variable) == os.pathsep.join(layers.stores()):
        environment.pop(STORES.variable, None)  # handed on from a file, see `with_stores`
    found = list(_settings(layers, environment))
    if how.json:
        unknown = unknown_variables(environment)
        screen.line(dumps(as_object(layers, found, unknown), indent=2))
        return ExitCode.OK
    screen.show(*as_tables(layers, found))
    return ExitCode.OK


def as_tables(layers: Layers, found: list[SettingValue]) -> tuple[Table, ...]:
    """Files, settings and limits for people."""
    files = tuple(
        (name.lower(), str(file.path) + ("" if file.exists else " (not there)"))
        for name, file in layers.named()
    )
    rows = tuple(
        (
            one.setting.key,
            one.setting.default if one.value is None else _told(one.value),
            one.source,
        )
        for one in found
    )
    limits = layers.limits
    limited = (
        ("forbidden", ", ".join(sorted(limits.forbidden)) or "nothing"),
        ("largest fixed weight", "the program's" if limits.alpha is None else f"{limits.alpha:g}"),
    )
    return (
        Table("Files, the stronger last", files),
        Table("Settings", rows, ("setting", "value", "from")),
        Table("Limits of the site", limited),
    )


def as_object(layers: Layers, found: list[SettingValue], unknown: list[str]) -> dict[str, Any]:
    """The same for programs."""
    limits = layers.limits
    return {
        "files": {
            name.lower(): {"path": str(file.path), "exists": file.exists}
            for name, file in layers.named()
        },
        "settings": {
            one.setting.key: {
                "value": one.value,
                "default": one.setting.default or None,
                "source": one.source,
                "variable": one.setting.variable,
            }
            for one in found
        },
        "limits": {"forbid": sorted(limits.forbidden), "alpha": limits.alpha},
        "unknown_variables": unknown,
    }


def _settings(layers: Layers, environment: Mapping[str, str]) -> Iterator[SettingValue]:
    """All settings of all verbs, in the order of their names."""
    known: dict[str, OptionSetting] = {STORES.key: STORES}
    for verb in verbs():
        known = settable(verb) | known
        layers.given(verb)  # checks each value against this verb's own option
    for key, setting in sorted(known.items()):
        value, source = None, "default"
        for name, file in layers.named():
            if key in file.options:
                value, source = file.options[key], f"{name.lower()} file"
        if environment.get(setting.variable):  # an empty one counts as none
            value, source = environment[setting.variable], "environment"
        yield SettingValue(setting, value, source)


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
