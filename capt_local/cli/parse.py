"""Typer around verbs whose options are fields of a dataclass; values of environment and files.

A verb is a function of one frozen dataclass (see `options`); each of its fields is one option.
Errors of the command line do not repeat the value that was typed: it may be a note.

Precedence: flag, environment, user file, site file; it also decides between options that exclude
each other. Every option with an environment variable has a key in the settings files, the long flag
without its dashes. The bundle folders (`config.model_folders`) have a key but no flag.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from capt_local.cli.exits import ExitCode
from capt_local.config import KEY, MODELS_VARIABLE, ConfigFile, Feature, read_site, read_user
from capt_local.errors import UsageError
from capt_local.report.terminal import Screen, output_error

Verb = Callable[..., int]
_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
# Click's usage errors, wherever this version of Typer has them.
_USAGE_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ in ("ClickException", "UsageError")
)
_PLAIN_OPTION = re.compile(r"--?[a-z][a-z-]{0,30}")
# Suggestions for options of other verbs, other programs or earlier versions.
_SUGGESTIONS = {
    ("eval", "--method"): "--methods NAME,NAME",
    ("bench", "--method"): "--modes NAME,NAME",
    ("chat", "-o"): "/save FILE in the chat",
    ("chat", "--transcript"): "/save FILE in the chat",
    ("chat", "-f"): "/read FILE in the chat, or generate -f FILE",
    ("chat", "-p"): "generate -p TEXT for one answer",
    ("", "--no-verify"): "--verify never",
    ("", "--temperature"): "--temp",
    ("", "--max-new-tokens"): "--max-tokens",
    ("", "--n-gpu-layers"): "--gpu-layers",
    ("", "--model"): "--bundle or --target",
}


def call(verb: Verb, name: str, arguments: Sequence[str], screen: Screen) -> int:
    """Parses the arguments of a verb and runs it; returns the exit code."""
    site, user, options = read_site(), read_user(), options_of(verb)
    files: dict[str, ConfigFile] = {SITE: site, USER: user}  # the stronger last
    file_values, file_sources = values_of(files, options)
    program = typer.Typer(add_completion=False, rich_markup_mode=None)
    program.command(context_settings=_SETTINGS)(_flat(verb))
    made: Any = typer.main.get_command(program)
    try:
        # Click only parses here; the verb runs outside of its handling of errors and Ctrl-C.
        parsed = made.main(
            list(arguments), prog_name=name, standalone_mode=False, default_map=file_values
        )
    except typer.Exit as exit_:
        return exit_.exit_code
    except typer.Abort:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:  # Click writes the help by itself
        raise output_error(error) from None
    except _USAGE_ERRORS as error:
        at: Any = getattr(getattr(error, "param", None), "name", None)
        declared = next((one for one in options.values() if one.name == at), None)
        takes = declared.takes if declared else "another value"
        context: Any = getattr(error, "ctx", None)
        source = context.get_parameter_source(at) if context and declared else None
        if declared is not None and source is not None and source.name == FILES:
            path = files[file_sources[declared.name]].path
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
            site.limits.refuse(option.feature, f"--{option.key}")
    if unknown := unknown_variables(os.environ):
        have = "is" if len(unknown) == 1 else "are"
        hint = "'capt-local config show' lists the settings."
        note = f"{', '.join(unknown)} {have} in the environment, but no setting has this name;"
        screen.notes([f"{note} {hint}"])
    gone = _overruled(
        values, {at: file_sources[at] if one == FILES else one for at, one in sources.items()}
    )
    return verb(_flags_of(verb)(**{at: each for at, each in values.items() if at not in gone}))


def _flat(verb: Verb) -> Callable[..., Any]:
    """A function with a parameter for each option; returns their values and where each is from."""

    def command(context: typer.Context, **values: Any) -> tuple[dict[str, Any], dict[str, str]]:
        sources = {name: context.get_parameter_source(name) for name in values}
        return values, {name: each.name for name, each in sources.items() if each is not None}

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("context", keyword, annotation=typer.Context)]
    for field, kind in _fields_of(verb):
        # An argument without a default is required.
        missing = field.default is dataclasses.MISSING
        default = inspect.Parameter.empty if missing else field.default
        declared: Any = Annotated[kind, field.metadata["declared"]]
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


def _usage_line(error: BaseException, takes: str, verb: str) -> str:
    """A usage error as one line, without the offending value."""
    option, param = getattr(error, "option_name", None), getattr(error, "param", None)
    if names := getattr(param, "opts", None):
        long = max(names, key=len)
        if hasattr(error, "param_type"):  # only Click's MissingParameter has it
            shown = long if long.startswith("-") else getattr(param, "metavar", long)
            return f"{shown} is missing."
        return f"{long} takes {takes}."
    if option is None:
        return "There is text that belongs to no option; put the prompt in quotes: -p '...'."
    # Text that begins with a dash is taken for an option; only plain option names are repeated.
    plain = _PLAIN_OPTION.fullmatch(option)
    if hasattr(error, "possibilities"):
        near = ", ".join(getattr(error, "possibilities", None) or ())
        what = f"option {option}" if plain else "such option"
        hint = _SUGGESTIONS.get((verb, option)) or _SUGGESTIONS.get(("", option)) or near
        return f"There is no {what}{f' (near: {hint})' if hint else ''}."
    return f"The option {option if plain else 'at the end'} needs a value."


# Options as they are declared, and their values from environment and files.

SITE, USER = "SITE", "USER"
FILES = "DEFAULT_MAP"  # Click's name for what comes from files
# Where a value can come from, the strongest first; the names of Click and of the files.
_SOURCES = ("COMMANDLINE", "ENVIRONMENT", USER, SITE)
_PREFIX, _TESTS = "CAPT_LOCAL_", "CAPT_LOCAL_TEST_"
# Variables without an option.
_OTHERS = frozenset({MODELS_VARIABLE, "CAPT_LOCAL_DEBUG"})
# Keys of all options with an environment variable. Collecting them from the verbs takes a second,
# so they are listed here, and a test compares.
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
# Options that exclude each other: the set with the stronger source wins.
_EXCLUSIVE = (
    ({"bundle"}, {"target", "expert", "base", "expert_adapter"}),
    ({"raw"}, {"system", "system_file"}),
    ({"alpha"}, {"weights"}),
)
# Options that require one of these others; without it, their settings are ignored.
_NEEDS = {"top_logprobs": {"json", "logprobs"}}


@dataclass(frozen=True, slots=True)
class DeclaredOption:
    """An option as its declaration describes it.

    Attributes:
        name: of the field that holds it.
        key: in a file: the long flag without its dashes.
        variable: in the environment; None where it has no twin.
        kind: bool, int, float, str or Path.
        choices: the only texts that it takes; empty for any.
        several: whether it takes a list of these.
        least, most: of a number.
        default: what holds where nobody sets it, for people.
        feature: which the site may forbid.
    """

    name: str
    key: str
    variable: str | None
    kind: type
    choices: tuple[str, ...] = ()
    several: bool = False
    least: float | None = None
    most: float | None = None
    default: str = ""
    feature: Feature | None = None

    @property
    def takes(self) -> str:
        """The accepted values, as text for the user."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        ends = ""
        if self.least is not None:
            ends = f" from {self.least:g}" + (f" to {self.most:g}" if self.most else "")
        names = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}
        return names.get(self.kind, "a text") + ends

    def from_file(self, given: Any, file: ConfigFile) -> Any:
        """A value of a settings file as text for Click, which validates it like a flag.

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


def values_of(
    files: Mapping[str, ConfigFile], known: Mapping[str, DeclaredOption]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of one verb from both files, and the file that each comes from.

    Raises:
        UsageError: a key is no setting of any verb, or a value is invalid.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for layer, file in files.items():
        for key, given in file.options.items():
            if key not in KEYS and key != "models":  # those of other verbs are fine
                named = f"options.{key}" if KEY.fullmatch(key) else "such key in options"
                raise UsageError(
                    f"{file.path}: there is no {named}; 'capt-local config show' lists the keys."
                )
            if key in known and known[key].variable:
                name = known[key].name
                values[name], origin[name] = known[key].from_file(given, file), layer
    return values, origin


def _flags_of(verb: Verb) -> type[Any]:
    """The dataclass of a verb's flags."""
    kind: type[Any] = next(iter(get_type_hints(verb).values()))
    return kind


def _fields_of(verb: Verb) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """The fields of a verb and their types: its own, then those of each group."""
    flags = _flags_of(verb)
    kinds, fields = get_type_hints(flags), {each.name: each for each in dataclasses.fields(flags)}
    for group in flags.__mro__:
        for name in inspect.get_annotations(group):
            yield fields[name], kinds[name]


def options_of(verb: Verb) -> dict[str, DeclaredOption]:
    """The options of a verb, by their key in a file; its arguments are left out."""
    found = (_declared(field, kind) for field, kind in _fields_of(verb) if field.metadata["names"])
    return {option.key: option for option in found}


def _declared(field: dataclasses.Field[Any], kind: Any) -> DeclaredOption:
    declared, names = field.metadata["declared"], field.metadata["names"]
    if get_origin(kind) in (Union, UnionType):  # with None
        kind = get_args(kind)[0]
    several = get_origin(kind) is list
    kind = get_args(kind)[0] if several else kind
    choices = get_args(kind)  # of a Literal
    if isinstance(kind, type) and issubclass(kind, Enum):
        choices = tuple(member.value for member in kind)
    return DeclaredOption(
        name=field.name,
        key=max(names, key=len).lstrip("-"),
        variable=declared.envvar,
        kind=str if choices else kind,
        choices=choices,
        several=several,
        least=declared.min,
        most=declared.max,
        default=_default_text(field.default, declared.help or ""),
        feature=field.metadata["feature"],
    )


def _default_text(default: Any, help: str) -> str:
    """The default as text; where the declaration has none, the one that its help names."""
    if default in (None, "", dataclasses.MISSING):
        found = re.search(r"Default: (.*?)\.?$", help)
        return found[1] if found else ""
    if isinstance(default, bool):
        return "true" if default else "false"
    return f"{default:g}" if isinstance(default, float) else str(default)


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Environment variables with our prefix that no setting has, such as misspelled ones."""
    known = {_PREFIX + key.upper().replace("-", "_") for key in KEYS} | _OTHERS
    return sorted(
        name
        for name in environment
        if name.startswith(_PREFIX) and not name.startswith(_TESTS) and name not in known
    )


def _overruled(values: Mapping[str, Any], origin: Mapping[str, str]) -> set[str]:
    """Options to ignore because they conflict with options of a stronger source."""

    def rank(names: set[str]) -> int:
        sources = [origin[name] for name in names if origin.get(name) in _SOURCES]
        return min(map(_SOURCES.index, sources), default=len(_SOURCES))

    gone: set[str] = set()
    for rivals in _EXCLUSIVE:
        ranks = [rank(names) for names in rivals]
        if len(_SOURCES) not in ranks and ranks[0] != ranks[1]:
            gone |= rivals[ranks[0] < ranks[1]]
    for name, needed in _NEEDS.items():
        if origin.get(name) != _SOURCES[0] and not any(values.get(each) for each in needed):
            gone.add(name)
    return gone & values.keys()
