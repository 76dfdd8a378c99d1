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
    """A command: the function `name` of its module does it."""

    name: str
    module: str
    summary: str


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
    for verb in VERBS:
        if verb.name == first:
            return _call(verb, arguments[1:], screen)
    screen.error(f"there is no such verb; one of {', '.join(v.name for v in VERBS)} is needed.")
    return ExitCode.USAGE


def help_text() -> str:
    """The help of the whole program."""
    width = max(len(verb.name) for verb in VERBS)
    verbs = "\n".join(f"  {verb.name:<{width}}  {verb.summary}" for verb in VERBS)
    return (
        "capt-local: private clinical language-model inference by Cross-Architecture Proxy "
        "Tuning.\n\n"
        f"Usage: capt-local VERB [OPTIONS]\n\nVerbs:\n{verbs}\n\n"
        f"Options:\n  --version             the version\n"
        f"  --install-completion  completion for this shell\n\n{_EPILOGUE}"
    )


def function(verb: Verb) -> Callable[..., int]:
    """The function of a verb; imports its module."""
    found: Callable[..., int] = getattr(import_module(verb.module), verb.name)
    return found


def _call(verb: Verb, arguments: list[str], screen: Screen) -> int:
    from capt_local.cli import typed

    return typed.call(function(verb), f"capt-local {verb.name}", arguments, screen)


def _whole(arguments: list[str]) -> int:
    """All verbs in one Typer program; only shell completion needs that."""
    from capt_local.cli import typed

    program: typer.Typer = typed.program({verb.name: function(verb) for verb in VERBS})
    program(arguments, prog_name="capt-local")
    return ExitCode.OK


def _completing() -> bool:
    return "_CAPT_LOCAL_COMPLETE" in os.environ
