"""`capt-local config show`: every setting, its value, and where that comes from."""

from __future__ import annotations

import os
from typing import Any

from capt_local.cli.app import VERBS, function
from capt_local.cli.exits import ExitCode
from capt_local.cli.options import JsonFlags, ViewFlags
from capt_local.cli.parse import (
    DeclaredOption,
    SettingsFiles,
    options_of,
    unknown_variables,
)
from capt_local.config import MODELS_VARIABLE
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Table


def config_show(how: JsonFlags, view: ViewFlags) -> int:
    """Every setting, its value, and whether site, user or environment set it.

    A flag wins over the environment, that over the user's file, that over the site's. Values are
    shown as they are; a verb checks them when it uses them.
    """
    screen = Screen.standard(view.verbose)
    files = SettingsFiles.read()
    known = {"models": DeclaredOption("models", "models", MODELS_VARIABLE, str, several=True)}
    for file in (files.site, files.user):
        file.models  # noqa: B018 - raises if it has no meaning
    for verb in (function(name) for name, (module, _) in VERBS.items() if module):
        known = {key: one for key, one in options_of(verb).items() if one.variable} | known
    files.values(known)  # unknown keys are refused
    found: dict[str, dict[str, Any]] = {}
    for key, option in sorted(known.items()):
        value, source = None, "default"
        for name, file in files.named():
            if key in file.options:
                value, source = file.options[key], f"{name.lower()} file"
        if given := os.environ.get(option.variable or ""):  # an empty one counts as none
            value, source = given, "environment"
        found[key] = {
            "value": value,
            "default": option.default or None,
            "source": source,
            "variable": option.variable,
        }
    limits = files.site.limits
    if how.json:
        about = {
            "files": {
                name.lower(): {"path": str(file.path), "exists": file.exists}
                for name, file in files.named()
            },
            "settings": found,
            "limits": {"forbid": sorted(limits.forbidden), "alpha": limits.alpha},
            "unknown_variables": unknown_variables(os.environ),
        }
        screen.line(dumps(about, indent=2))
        return ExitCode.OK
    places = tuple(
        (name.lower(), str(file.path) + ("" if file.exists else " (not there)"))
        for name, file in files.named()
    )
    rows = tuple(
        (key, one["default"] or "" if one["value"] is None else _text(one["value"]), one["source"])
        for key, one in found.items()
    )
    limited = (
        ("forbidden", ", ".join(sorted(limits.forbidden)) or "nothing"),
        ("largest fixed weight", "the program's" if limits.alpha is None else f"{limits.alpha:g}"),
    )
    screen.show(
        Table("Files, the stronger last", places),
        Table("Settings", rows, ("setting", "value", "from")),
        Table("Limits of the site", limited),
    )
    return ExitCode.OK


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
