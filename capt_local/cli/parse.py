"""Typer around verbs whose options come in groups.

A verb is a function of frozen dataclasses (see `options`); each field of such a group is one
option. So an option is defined once and shared, and a verb's signature names groups, not thirty
flags. Errors of the command line are told without the value that was typed: it may be a note.
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
from capt_local.cli.settings import Given, Layers, by_precedence, unknown_variables, with_stores
from capt_local.config import Feature, SiteLimits
from capt_local.report.terminal import Screen, unwritable

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
# Click's usage errors, wherever this version of Typer keeps them.
_USAGE_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ in ("ClickException", "UsageError")
)
_FILES = "DEFAULT_MAP"  # Click's name for what comes from files
_PLAIN_OPTION = re.compile(r"--?[a-z][a-z-]{0,30}")


# What people type who know other verbs, or other programs.
_INSTEAD = {
    ("eval", "-o"): "--csv FILE for the table, --results FILE for finished items",
    ("eval", "--output"): "--csv FILE for the table, --results FILE for finished items",
    ("bench", "-o"): "--json, and a pipe into a file",
    ("chat", "-o"): "--transcript FILE",
    ("chat", "--output"): "--transcript FILE",
    ("chat", "-f"): "/read FILE in the chat, or generate -f FILE",
    ("chat", "-p"): "generate -p TEXT for one answer",
    ("chat", "--json"): "generate --json",
    ("demo", "-o"): "generate -o FILE",
    ("demo", "--json"): "generate --json",
    ("explain", "-o"): "--html FILE",
    ("explain", "-f"): "the file without a flag",
    ("batch", "-f"): "the file without a flag",
    ("score", "-f"): "the file without a flag",
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


def call(verb: Callable[..., int], name: str, arguments: Sequence[str], screen: Screen) -> int:
    """Parses the arguments of a verb and runs it.

    Returns:
        The exit code.
    """
    made: Any = command(verb)
    given = Layers.read().given(verb)
    files = {"default_map": given.values, "obj": given}
    try:
        # Only the parsing happens inside: Click has ideas of its own about errors and Ctrl-C.
        parsed = made.main(list(arguments), prog_name=name, standalone_mode=False, **files)
    except typer.Exit as exit_:
        return exit_.exit_code
    except typer.Abort:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:  # Click writes the help by itself
        raise unwritable(error) from None
    except _USAGE_ERRORS as error:
        screen.error(f"{_usage_line(error, name.split()[-1])} See '{name} --help'.")
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
    with with_stores(given.stores):
        return verb(**parsed)


def command(verb: Callable[..., int]) -> Any:
    """A verb as a Click command."""
    program = typer.Typer(add_completion=False, rich_markup_mode=None)
    program.command(context_settings=dict(_SETTINGS))(flat(verb))
    return typer.main.get_command(program)


def program(verbs: Mapping[str, Callable[..., int]]) -> typer.Typer:
    """One Typer program with all verbs, for shell completion."""
    whole = typer.Typer(rich_markup_mode=None)
    for name, verb in verbs.items():
        whole.command(name, context_settings=dict(_SETTINGS))(flat(verb))
    return whole


def flat(verb: Callable[..., int]) -> Callable[..., dict[str, Any]]:
    """A function with one parameter for each field of the verb's groups, that returns these.

    One more parameter is Click's context, which knows what came from the environment and files.
    """
    groups: dict[str, type[Any]] = {
        name: kind for name, kind in get_type_hints(verb).items() if name != "return"
    }

    def command(context: typer.Context, **values: Any) -> dict[str, Any]:
        sources = {name: context.get_parameter_source(name) for name in values}
        origin = {name: source.name for name, source in sources.items() if source is not None}
        if isinstance(context.obj, Given):
            origin |= {name: context.obj.origin[name] for name in origin if origin[name] == _FILES}
            for kind in groups.values():
                _check_allowed(kind, values, context.obj.limits)
        made = {
            name: kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})
            for name, kind in groups.items()
        }
        return {name: by_precedence(group, origin) for name, group in made.items()}

    whole = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=_default(field), annotation=hint
        )
        for kind in groups.values()
        for field, hint in _fields(kind)
    ]
    parameters.insert(0, whole)
    command.__name__ = verb.__name__
    command.__doc__ = verb.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _check_allowed(kind: type[Any], values: Mapping[str, Any], limits: SiteLimits) -> None:
    """Refuses options of a group that the site forbids."""
    for field, hint in _fields(kind):
        declared = getattr(hint, "__metadata__", ())
        for need in declared:
            if isinstance(need, Feature) and values[field.name] not in (None, False):
                limits.refuse(need, f"--{field.name.replace('_', '-')}")


def _fields(kind: type[Any]) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return [(field, hints[field.name]) for field in dataclasses.fields(kind)]


def _default(field: dataclasses.Field[Any]) -> Any:
    """What stands where nothing is given; an argument without a default has to be given."""
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _usage_line(error: BaseException, verb: str) -> str:
    """What is wrong with the command line, without the value that was typed."""
    option = getattr(error, "option_name", None)
    param = getattr(error, "param", None)
    names = getattr(param, "opts", None)
    if names:
        name = max(names, key=len)
        if hasattr(error, "param_type"):  # only Click's MissingParameter has it
            shown = name if name.startswith("-") else getattr(param, "metavar", name)
            return f"{shown} is missing."
        return f"The value of {name} is not one that it takes."
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
