"""The dispatcher: finds the verb, imports it alone, turns errors into a line and an exit code.

Nothing heavy is imported here, so that `capt-local --help` answers at once: not Typer, not numpy,
not the engine. The help of the whole program is written from the table of verbs.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

from capt_local.cli.exits import ExitCode, code_for, line_for, wants_traceback
from capt_local.cli.verbs import VERBS, Verb, function
from capt_local.hardening import keep_memory_private
from capt_local.report.terminal import Screen, check_output, drop_output
from capt_local.version import __version__

_HELP = """\
capt-local: private clinical language-model inference by Cross-Architecture Proxy Tuning.

Usage: capt-local VERB [OPTIONS]

Verbs:
{verbs}

Options:
  --version             the version
  --install-completion  completion for this shell

Use 'capt-local VERB --help' for the options of a verb.
Every setting has a twin in the environment, for example CAPT_LOCAL_BUNDLE for --bundle.

Intended use: drafts for review by a clinician. Not for time-critical decisions, not for patients
to read unreviewed. Text stays on this machine; nothing is written unless asked for."""
_GROUP_HELP = """\
Usage: capt-local {name} VERB [OPTIONS]

{summary}

Verbs:
{verbs}

Use 'capt-local {name} VERB --help' for the options of a verb."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the process."""

    # What Python itself would print of an error in a thread or a callback may hold a note's text.
    def told(found: Any) -> None:
        if isinstance(found.exc_value, Exception):
            Screen.standard().error(line_for(found.exc_value))

    if not wants_traceback():
        threading.excepthook = sys.unraisablehook = told
    sys.exit(int(run(sys.argv[1:] if arguments is None else list(arguments))))


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code."""
    keep_memory_private()  # before anything is read
    screen = Screen.standard()
    try:
        check_output()
        return _dispatch(list(arguments), screen)
    except BrokenPipeError:  # such as `| head`: other programs end by the signal, without a word
        drop_output()
        return ExitCode.PIPE
    except (Exception, KeyboardInterrupt) as error:
        if wants_traceback():
            raise
        screen.error(line_for(error))
        return code_for(error)


def _dispatch(arguments: list[str], screen: Screen) -> int:
    first = arguments[0] if arguments else "--help"
    if first in ("--install-completion", "--show-completion") or (
        "_CAPT_LOCAL_COMPLETE" in os.environ
    ):
        return _complete(arguments)
    if first in ("-h", "--help", "help"):
        screen.line(_HELP.format(verbs=_listed(VERBS)))
        return ExitCode.OK
    if first == "--version":
        screen.line(f"capt-local {__version__}")
        return ExitCode.OK
    above: tuple[str, ...] = ()
    verbs: Sequence[Verb] = VERBS
    while verb := next((each for each in verbs if arguments and each.name == arguments[0]), None):
        names, arguments = (*above, verb.name), arguments[1:]
        if not verb.verbs:
            from capt_local.cli import parse

            found = function(verb, *above)
            return parse.call(found, f"capt-local {' '.join(names)}", arguments, screen)
        if not arguments or arguments[0] in ("-h", "--help"):
            listed = _listed(verb.verbs)
            screen.line(_GROUP_HELP.format(name=verb.name, summary=verb.summary, verbs=listed))
            return ExitCode.OK
        verbs, above = verb.verbs, names
    behind = f" behind {above[0]}" if above else ""
    hint = " For an answer to a file: capt-local generate -f FILE." if _is_file(first) else ""
    known = ", ".join(verb.name for verb in verbs)
    screen.error(f"there is no such verb{behind}; one of {known} is needed.{hint}")
    return ExitCode.USAGE


def _is_file(text: str) -> bool:
    return os.path.isfile(text) or os.path.splitext(text)[1].lower() in (".txt", ".md")


def _listed(verbs: Sequence[Verb]) -> str:
    width = max(len(verb.name) for verb in verbs)
    return "\n".join(f"  {verb.name:<{width}}  {verb.summary}" for verb in verbs)


def _complete(arguments: list[str]) -> int:
    """All verbs in one Typer program; only shell completion needs that."""
    from capt_local.cli import parse

    program = parse.program({v.name: function(v) for v in VERBS if not v.verbs})
    for verb in VERBS:
        if verb.verbs:
            inner = {each.name: function(each, verb.name) for each in verb.verbs}
            program.add_typer(parse.program(inner), name=verb.name)
    program(arguments, prog_name="capt-local")
    return ExitCode.OK
