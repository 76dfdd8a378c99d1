"""Typer around verbs whose options come in groups.

A verb is a function of frozen dataclasses (see `options`); each field of such a group is one
option. So an option is declared once and shared, and a verb's signature names groups, not thirty
flags. Errors of the command line do not repeat the value that was typed: it may be a note.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_type_hints

import typer

from capt_local.cli.exits import ExitCode
from capt_local.cli.settings import (
    FILES,
    SettingsFiles,
    Verb,
    groups_of,
    options_of,
    overruled,
    unknown_variables,
)
from capt_local.report.terminal import Screen, unwritable

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
# Click's usage errors, wherever this version of Typer has them.
_USAGE_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ in ("ClickException", "UsageError")
)
_PLAIN_OPTION = re.compile(r"--?[a-z][a-z-]{0,30}")
# What people type who know other verbs, other programs, or earlier versions.
_INSTEAD = {
    ("eval", "-o"): "--csv FILE for the table, --results FILE for finished items",
    ("eval", "--output"): "--csv FILE for the table, --results FILE for finished items",
    ("eval", "--method"): "--methods NAME,NAME",
    ("bench", "-o"): "--json, and a pipe into a file",
    ("bench", "--method"): "--modes NAME,NAME",
    ("chat", "-o"): "--transcript FILE",
    ("chat", "--output"): "--transcript FILE",
    ("chat", "-f"): "/read FILE in the chat, or generate -f FILE",
    ("chat", "-p"): "generate -p TEXT for one answer",
    ("chat", "--json"): "generate --json",
    ("demo", "-o"): "generate -o FILE",
    ("demo", "--json"): "generate --json",
    ("demo", "--method"): "generate --method NAME; demo shows the target and capt side by side",
    ("explain", "-o"): "--html FILE",
    ("explain", "-f"): "the file without a flag",
    ("explain", "--with-target"): "none: the target's own answer is shown where the file has it",
    ("batch", "-f"): "the file without a flag",
    ("score", "-f"): "the file without a flag",
    ("", "--no-verify"): "--verify never",
    ("", "--temperature"): "--temp",
    ("", "--n-predict"): "--max-tokens",
    ("", "--max-new-tokens"): "--max-tokens",
    ("", "--n-gpu-layers"): "--gpu-layers",
    ("", "--ctx"): "--ctx-size",
    ("", "--n-ctx"): "--ctx-size",
    ("", "--model"): "--bundle or --target",
    ("", "--input"): "--file",
    ("", "-i"): "-f",
}


def call(verb: Verb, name: str, arguments: Sequence[str], screen: Screen) -> int:
    """Parses the arguments of a verb and runs it; returns the exit code."""
    files, options = SettingsFiles.read(), options_of(verb)
    of_files, file_of = files.values(options)
    made: Any = typer.main.get_command(program({name: verb}))
    try:
        # Only the parsing happens inside: Click has ideas of its own about errors and Ctrl-C.
        parsed = made.main(
            list(arguments), prog_name=name, standalone_mode=False, default_map=of_files
        )
    except typer.Exit as exit_:
        return exit_.exit_code
    except typer.Abort:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:  # Click writes the help by itself
        raise unwritable(error) from None
    except _USAGE_ERRORS as error:
        at: Any = getattr(getattr(error, "param", None), "name", None)
        declared = next((one for one in options.values() if one.name == at), None)
        takes = declared.takes if declared else "another value"
        if declared is not None and _source(error, at) == FILES:
            path = dict(files.named())[file_of[declared.name]].path
            screen.error(f"{path}: options.{declared.key} takes {takes}.")
        else:
            line = _usage_line(error, takes, name.split()[-1])
            screen.error(f"{line} See '{name} --help'.")
        return ExitCode.USAGE
    if not isinstance(parsed, tuple):
        return int(parsed or 0)  # --help
    values, sources = parsed
    for option in options.values():
        if option.feature is not None and values[option.name] not in (None, False):
            files.site.limits.refuse(option.feature, f"--{option.key}")
    if unknown := unknown_variables(os.environ):
        have = "is" if len(unknown) == 1 else "are"
        hint = "'capt-local config show' lists the settings."
        note = f"{', '.join(unknown)} {have} in the environment, but no setting has this name;"
        screen.notes([f"{note} {hint}"])
    gone = overruled(
        values, {at: file_of[at] if one == FILES else one for at, one in sources.items()}
    )
    groups = {}
    for group, kind in groups_of(verb).items():
        fields = {each.name: each.default for each in dataclasses.fields(kind)}
        fields |= {at: values[at] for at in fields if at not in gone}
        groups[group] = kind(**fields)
    return verb(**groups)


def program(verbs: Mapping[str, Verb]) -> typer.Typer:
    """One Typer program with these verbs; all of them together for shell completion alone."""
    whole = typer.Typer(add_completion=len(verbs) > 1, rich_markup_mode=None)
    for name, verb in verbs.items():
        whole.command(name, context_settings=dict(_SETTINGS))(_flat(verb))
    return whole


def _flat(verb: Verb) -> Callable[..., Any]:
    """A function with a parameter for each field of the verb's groups.

    It returns their values, and where each came from in Click's words.
    """

    def command(context: typer.Context, **values: Any) -> tuple[dict[str, Any], dict[str, str]]:
        sources = {name: context.get_parameter_source(name) for name in values}
        return values, {name: each.name for name, each in sources.items() if each is not None}

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("context", keyword, annotation=typer.Context)]
    for kind in groups_of(verb).values():
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            # An argument without a default has to be given.
            missing = field.default is dataclasses.MISSING
            default = inspect.Parameter.empty if missing else field.default
            declared: Any = Annotated[hints[field.name], field.metadata["declared"]]
            parameters.append(
                inspect.Parameter(field.name, keyword, default=default, annotation=declared)
            )
    command.__name__ = verb.__name__
    # Click fills paragraphs, but for those that begin with this mark.
    text, _, examples = inspect.cleandoc(verb.__doc__ or "").partition("\n\nExamples:\n")
    lines = "\n".join(line for line in examples.splitlines() if line.strip())
    command.__doc__ = f"{text}\n\n\b\nExamples:\n{lines}" if lines else text
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _source(error: BaseException, name: str) -> str | None:
    """Where the value came from that an error of Click is about."""
    context: Any = getattr(error, "ctx", None)
    source = context.get_parameter_source(name) if context else None
    return None if source is None else str(source.name)


def _usage_line(error: BaseException, takes: str, verb: str) -> str:
    """What is wrong with the command line, without the value that stands there."""
    option, param = getattr(error, "option_name", None), getattr(error, "param", None)
    if names := getattr(param, "opts", None):
        long = max(names, key=len)
        if hasattr(error, "param_type"):  # only Click's MissingParameter has it
            shown = long if long.startswith("-") else getattr(param, "metavar", long)
            return f"{shown} is missing."
        return f"{long} takes {takes}."
    if option is None:
        return "There is text that belongs to no option; put the prompt in quotes: -p '...'."
    # Text that begins with a dash looks like an option; only what cannot be a note is repeated.
    plain = _PLAIN_OPTION.fullmatch(option)
    if hasattr(error, "possibilities"):
        near = ", ".join(getattr(error, "possibilities", None) or ())
        what = f"option {option}" if plain else "such option"
        hint = _INSTEAD.get((verb, option)) or _INSTEAD.get(("", option)) or near
        return f"There is no {what}{f' (near: {hint})' if hint else ''}."
    return f"The option {option if plain else 'at the end'} needs a value."
