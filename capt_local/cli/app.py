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
from capt_local.cli.verbs import VERBS, below, function
from capt_local.errors import BackendFailed
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
        if isinstance(found.exc_value, BackendFailed):  # else C code ends the process by a signal
            os._exit(code_for(found.exc_value))

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
        screen.line(_HELP.format(verbs=_listed("")))
        return ExitCode.OK
    if first == "--version":
        screen.line(f"capt-local {__version__}")
        return ExitCode.OK
    above = first if first in VERBS and not VERBS[first][0] else ""
    if above and (len(arguments) < 2 or arguments[1] in ("-h", "--help")):
        screen.line(_GROUP_HELP.format(name=above, summary=VERBS[above][1], verbs=_listed(above)))
        return ExitCode.OK
    depth = 2 if above else 1
    name = " ".join(arguments[:depth])
    if name in VERBS:
        from capt_local.cli import parse

        return parse.call(function(name), f"capt-local {name}", arguments[depth:], screen)
    behind = f" behind {above}" if above else ""
    hint = " For an answer to a file: capt-local generate -f FILE." if _is_file(first) else ""
    screen.error(
        f"there is no such verb{behind}; one of {', '.join(below(above))} is needed.{hint}"
    )
    return ExitCode.USAGE


def _is_file(text: str) -> bool:
    return os.path.isfile(text) or os.path.splitext(text)[1].lower() in (".txt", ".md")


def _listed(above: str) -> str:
    verbs = below(above)
    width = max(map(len, verbs))
    return "\n".join(f"  {name:<{width}}  {summary}" for name, summary in verbs.items())


def _complete(arguments: list[str]) -> int:
    """All verbs in one Typer program; only shell completion needs that."""
    from capt_local.cli import parse

    groups = [name for name, (module, _) in VERBS.items() if not module]
    program = parse.program({name: function(name) for name in below() if name not in groups})
    for above in groups:
        inner = {name: function(f"{above} {name}") for name in below(above)}
        program.add_typer(parse.program(inner), name=above)
    program(arguments, prog_name="capt-local")
    return ExitCode.OK
