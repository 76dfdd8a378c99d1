"""The dispatcher: finds the verb, imports it alone, turns errors into a line and an exit code.

Nothing heavy is imported here, so that `capt-local --help` answers at once: not Typer, not numpy,
not the engine. The help of the whole program is written from the table of verbs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from capt_local import __version__
from capt_local.cli.exits import ExitCode, code_for, line_for, wants_traceback
from capt_local.report.screen import Screen, check_output, drop_output

if TYPE_CHECKING:
    import typer


@dataclass(frozen=True, slots=True)
class Verb:
    """A command: the function of its module does it, or one of several below it.

    Attributes:
        name: as typed, and of the function.
        module: that holds it.
        summary: its line in the help.
        verbs: those that stand behind its name, as in `models list`; their functions bear both
            names, as `models_list`.
    """

    name: str
    module: str
    summary: str
    verbs: tuple[Verb, ...] = ()


_MODELS = (
    Verb("list", "capt_local.cli.models", "The bundles that are here"),
    Verb("show", "capt_local.cli.models_show", "What a bundle is, and how its models fit together"),
    Verb("verify", "capt_local.cli.models", "Whether the files are those that the bundle names"),
    Verb("remove", "capt_local.cli.models", "Deletes a bundle from the user's own store"),
    Verb("export", "capt_local.cli.models_travel", "Writes a bundle for another machine, signed"),
    Verb("import", "capt_local.cli.models_travel", "Takes in a bundle that came from elsewhere"),
    Verb("keygen", "capt_local.cli.models_keys", "Makes a pair of keys to sign bundles with"),
    Verb("trust", "capt_local.cli.models_keys", "Installs the public key of a source of bundles"),
)
_CONFIG = (Verb("show", "capt_local.cli.config", "Every setting, and where its value comes from"),)
VERBS = (
    Verb("demo", "capt_local.cli.demo", "A fictitious visit, with the three demo models"),
    Verb("chat", "capt_local.cli.chat", "A conversation, with /why for what the expert changed"),
    Verb("generate", "capt_local.cli.generate", "One answer to a prompt (-p, -f or stdin)"),
    Verb("explain", "capt_local.cli.explain", "What the expert changed in an answer, and why"),
    Verb("batch", "capt_local.cli.batch", "An answer to each record of a file, resumable"),
    Verb("replay", "capt_local.cli.replay", "One record of a batch again: is the answer the same"),
    Verb("merge", "capt_local.cli.merge", "The outputs of all shards of a batch run as one"),
    Verb("audit", "capt_local.cli.audit", "The log of batch runs: is it whole, what is in it"),
    Verb("score", "capt_local.cli.score", "How well texts are predicted: bits per byte"),
    Verb("eval", "capt_local.cli.eval", "Tasks under several methods, with 95 % intervals"),
    Verb("bench", "capt_local.cli.bench", "How fast answers come, target alone and together"),
    Verb(
        "models",
        "capt_local.cli.models",
        "The bundles: list, show, verify, export, import",
        _MODELS,
    ),
    Verb("config", "capt_local.cli.config", "What site and user have settled: show", _CONFIG),
    Verb("doctor", "capt_local.cli.doctor", "What runs here: versions, backend, memory, bundle"),
)

_EPILOGUE = """\
Use 'capt-local VERB --help' for the options of a verb.
Every option has a twin in the environment, for example CAPT_LOCAL_BUNDLE for --bundle.

Intended use: drafts for review by a clinician. Not for time-critical decisions, not for patients
to read unreviewed. Text stays on this machine; nothing is written unless asked for."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the process."""
    sys.exit(int(run(sys.argv[1:] if arguments is None else list(arguments))))


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code."""
    screen = Screen.standard()
    try:
        check_output()
        return _dispatch(list(arguments), screen)
    except BrokenPipeError:
        drop_output()
        return ExitCode.UNEXPECTED
    except Exception as error:
        return _report(error, screen)
    except KeyboardInterrupt as error:
        return _report(error, screen)


def _report(error: BaseException, screen: Screen) -> ExitCode:
    if wants_traceback():
        raise error
    screen.error(line_for(error))
    return code_for(error)


def _dispatch(arguments: list[str], screen: Screen) -> int:
    first = arguments[0] if arguments else "--help"
    if first in ("--install-completion", "--show-completion") or _completing():
        return _whole(arguments)
    if first in ("-h", "--help", "help"):
        screen.line(help_text())
        return ExitCode.OK
    if first == "--version":
        screen.line(f"capt-local {__version__}")
        return ExitCode.OK
    return _choose(VERBS, arguments, (), screen)


def _choose(
    verbs: Sequence[Verb], arguments: list[str], above: tuple[str, ...], screen: Screen
) -> int:
    for verb in verbs:
        if arguments and verb.name == arguments[0]:
            names, rest = (*above, verb.name), arguments[1:]
            if not verb.verbs:
                return _call(verb, names, rest, screen)
            if rest and rest[0] not in ("-h", "--help"):
                return _choose(verb.verbs, rest, names, screen)
            screen.line(group_help(verb))
            return ExitCode.OK
    behind = f" behind {' '.join(above)}" if above else ""
    known = ", ".join(verb.name for verb in verbs)
    screen.error(f"there is no such verb{behind}; one of {known} is needed.")
    return ExitCode.USAGE


def help_text() -> str:
    """The help of the whole program."""
    return (
        "capt-local: private clinical language-model inference by Cross-Architecture Proxy "
        "Tuning.\n\n"
        f"Usage: capt-local VERB [OPTIONS]\n\nVerbs:\n{_listed(VERBS)}\n\n"
        f"Options:\n  --version             the version\n"
        f"  --install-completion  completion for this shell\n\n{_EPILOGUE}"
    )


def group_help(verb: Verb) -> str:
    """The help of a verb that has others behind it."""
    name = f"capt-local {verb.name}"
    return (
        f"Usage: {name} VERB [OPTIONS]\n\n{verb.summary}\n\nVerbs:\n{_listed(verb.verbs)}\n\n"
        f"Use '{name} VERB --help' for the options of a verb."
    )


def _listed(verbs: Sequence[Verb]) -> str:
    width = max(len(verb.name) for verb in verbs)
    return "\n".join(f"  {verb.name:<{width}}  {verb.summary}" for verb in verbs)


def function(verb: Verb, *above: str) -> Callable[..., int]:
    """The function of a verb; imports its module.

    Args:
        verb: one without others behind it.
        above: the names in front of its own.
    """
    found: Callable[..., int] = getattr(import_module(verb.module), "_".join((*above, verb.name)))
    return found


def _call(verb: Verb, names: Sequence[str], arguments: list[str], screen: Screen) -> int:
    from capt_local.cli import typed

    found = function(verb, *names[:-1])
    return typed.call(found, f"capt-local {' '.join(names)}", arguments, screen)


def _whole(arguments: list[str]) -> int:
    """All verbs in one Typer program; only shell completion needs that."""
    from capt_local.cli import typed

    program: typer.Typer = typed.program({v.name: function(v) for v in VERBS if not v.verbs})
    for verb in VERBS:
        if verb.verbs:
            inner = {each.name: function(each, verb.name) for each in verb.verbs}
            program.add_typer(typed.program(inner), name=verb.name)
    program(arguments, prog_name="capt-local")
    return ExitCode.OK


def _completing() -> bool:
    return "_CAPT_LOCAL_COMPLETE" in os.environ
