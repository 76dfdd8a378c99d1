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
from typing import Any, get_type_hints

import typer

from capt_local.cli.exits import ExitCode
from capt_local.cli.settings import (
    FILES,
    DeclaredOption,
    SettingsFiles,
    Verb,
    groups_of,
    options_of,
    overruled,
    unknown_variables,
)
from capt_local.config import ConfigFile
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
    """Parses the arguments of a verb and runs it.

    Returns:
        The exit code.
    """
    files = SettingsFiles.read()
    values, origin = files.values(options_of(verb))

    def allowed(given: Mapping[str, Any]) -> None:
        for option in options_of(verb).values():
            if option.feature is not None and given[option.name] not in (None, False):
                files.site.limits.refuse(option.feature, f"--{option.key}")

    program = typer.Typer(add_completion=False, rich_markup_mode=None)
    program.command(context_settings=dict(_SETTINGS))(flat(verb, origin, allowed))
    made: Any = typer.main.get_command(program)
    try:
        # Only the parsing happens inside: Click has ideas of its own about errors and Ctrl-C.
        parsed = made.main(
            list(arguments), prog_name=name, standalone_mode=False, default_map=values
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
        screen.error(f"{_usage_line(error, verb, name, dict(files.named()), origin)}")
        return ExitCode.USAGE
    if not isinstance(parsed, dict):
        return int(parsed or 0)  # --help
    if unknown := unknown_variables(os.environ):
        have = "is" if len(unknown) == 1 else "are"
        screen.notes(
            [
                f"{', '.join(unknown)} {have} in the environment, but no setting has this name; "
                "'capt-local config show' lists the settings."
            ]
        )
    return verb(**parsed)


def program(verbs: Mapping[str, Verb]) -> typer.Typer:
    """One Typer program with all verbs, for shell completion."""
    whole = typer.Typer(rich_markup_mode=None)
    for name, verb in verbs.items():
        whole.command(name, context_settings=dict(_SETTINGS))(flat(verb))
    return whole


def flat(
    verb: Verb,
    of_files: Mapping[str, str] | None = None,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> Callable[..., dict[str, Any]]:
    """A function with one parameter for each field of the verb's groups, that returns these.

    One more parameter is Click's context, which knows what came from the environment and files.

    Args:
        verb: the function.
        of_files: which file the values come from that files set, by name.
        check: called with all values; raises where one is forbidden.
    """
    groups = groups_of(verb)

    def command(context: typer.Context, **values: Any) -> dict[str, Any]:
        if check is not None:
            check(values)
        sources = {name: context.get_parameter_source(name) for name in values}
        origin = {name: source.name for name, source in sources.items() if source is not None}
        origin |= {name: (of_files or {})[name] for name in origin if origin[name] == FILES}
        gone = overruled(values, origin)
        return {
            name: kind(
                **{
                    field.name: field.default if field.name in gone else values[field.name]
                    for field in dataclasses.fields(kind)
                }
            )
            for name, kind in groups.items()
        }

    parameters = [
        inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    ]
    for kind in groups.values():
        hints = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            # An argument without a default has to be given.
            missing = field.default is dataclasses.MISSING
            default = inspect.Parameter.empty if missing else field.default
            parameters.append(
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=default,
                    annotation=hints[field.name],
                )
            )
    command.__name__ = verb.__name__
    # Click fills paragraphs, but for those that begin with this mark.
    text, _, examples = inspect.cleandoc(verb.__doc__ or "").partition("\n\nExamples:\n")
    lines = "\n".join(line for line in examples.splitlines() if line.strip())
    command.__doc__ = f"{text}\n\n\b\nExamples:\n{lines}" if lines else text
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _usage_line(
    error: BaseException,
    verb: Verb,
    name: str,
    files: Mapping[str, ConfigFile],
    origin: Mapping[str, str],
) -> str:
    """What is wrong with the command line or a file, without the value that stands there."""
    name_of = getattr(getattr(error, "param", None), "name", None)
    declared = next((one for one in options_of(verb).values() if one.name == name_of), None)
    context: Any = getattr(error, "ctx", None)
    source = context.get_parameter_source(name_of) if declared and context else None
    if declared is not None and source is not None and source.name == FILES:
        path = files[origin[declared.name]].path
        return f"{path}: options.{declared.key} takes {declared.takes}."
    return f"{_flag_line(error, declared, name.split()[-1])} See '{name} --help'."


def _flag_line(error: BaseException, declared: DeclaredOption | None, verb: str) -> str:
    option = getattr(error, "option_name", None)
    param = getattr(error, "param", None)
    names = getattr(param, "opts", None)
    if names:
        long = max(names, key=len)
        if hasattr(error, "param_type"):  # only Click's MissingParameter has it
            shown = long if long.startswith("-") else getattr(param, "metavar", long)
            return f"{shown} is missing."
        return f"{long} takes {declared.takes if declared else 'another value'}."
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
