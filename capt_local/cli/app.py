"""The dispatcher: finds the verb, imports it alone, turns errors into a line and an exit code.

Nothing heavy is imported here, so that `capt-local --help` answers at once: not Typer, not numpy,
not the engine. The help of the whole program is written from the table of verbs.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

from capt_local.cli.exits import ExitCode, code_for, line_for, wants_traceback
from capt_local.errors import BackendFailed
from capt_local.hardening import keep_memory_private
from capt_local.report.terminal import Screen, check_output, drop_output, terminal_restorer
from capt_local.version import __version__

# The module of this package that holds a verb's function, and its line in the help. A verb without
# a module stands in front of others, as in `models list`.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("generate", "A fictitious visit, with the three demo models"),
    "chat": ("chat", "A conversation, with /why for what the expert changed"),
    "generate": ("generate", "One answer to a prompt (-p, -f or stdin)"),
    "explain": ("explain", "What the expert changed in an answer, and why"),
    "serve": ("serve", "A page for clinicians, and OpenAI's interface, on this machine"),
    "batch": ("batch", "An answer to each record of a file, resumable"),
    "score": ("score", "How well texts are predicted: bits per byte"),
    "eval": ("eval", "Tasks under several methods, with 95 % intervals"),
    "bench": ("bench", "How fast answers come, target alone and together"),
    "models": ("", "The bundles: list, show, verify, export, import"),
    "models list": ("models", "The bundles that are here"),
    "models show": ("models", "What a bundle is, and how its models fit together"),
    "models verify": ("models", "Whether the files are those that the bundle names"),
    "models create": ("models_create", "Makes a bundle of models, after a look into them"),
    "models remove": ("models", "Deletes a bundle from the user's own store"),
    "models clean": ("models", "Deletes what imports that were stopped have left"),
    "models pull": ("models_create", "Fetches a bundle from a hub, the one verb with a network"),
    "models export": ("models", "Writes a bundle for another machine, signed"),
    "models import": ("models", "Installs a bundle that came from elsewhere"),
    "models keygen": ("models", "Makes a pair of keys to sign bundles with"),
    "models trust": ("models", "Installs the public key of a source of bundles"),
    "config": ("", "The settings of site and user: show"),
    "config show": ("doctor", "Every setting, and where its value comes from"),
    "doctor": ("doctor", "What runs here: versions, backend, memory, bundle"),
}
_HELP = """\
capt-local: private clinical language-model inference by Cross-Architecture Proxy Tuning.

Usage: capt-local VERB [OPTIONS]

Verbs:
{verbs}

Options:
  --version  the version

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
    as_before = terminal_restorer()

    # Python's own report of an error in a thread or a callback may hold a note's text.
    def told(found: Any) -> None:
        try:
            if isinstance(found.exc_value, Exception):
                Screen.standard().error(line_for(found.exc_value))
        finally:
            if isinstance(found.exc_value, BackendFailed):  # else C code ends it by a signal
                as_before()
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
    hint = ""
    if os.path.isfile(first) or os.path.splitext(first)[1].lower() in (".txt", ".md"):
        hint = " For an answer to a file: capt-local generate -f FILE."
    screen.error(
        f"there is no such verb{behind}; one of {', '.join(below(above))} is needed.{hint}"
    )
    return ExitCode.USAGE


def _listed(above: str) -> str:
    verbs = below(above)
    width = max(map(len, verbs))
    return "\n".join(f"  {name:<{width}}  {summary}" for name, summary in verbs.items())


def function(name: str) -> Callable[..., int]:
    """The function of a verb, `models_list` for `models list`; imports its module."""
    module = import_module(f"capt_local.cli.{VERBS[name][0]}")
    found: Callable[..., int] = getattr(module, name.replace(" ", "_"))
    return found


def below(name: str = "") -> dict[str, str]:
    """The verbs behind a name and their lines in the help; those of the program behind none."""
    front = f"{name} " if name else ""
    rest = {each.removeprefix(front): VERBS[each][1] for each in VERBS if each.startswith(front)}
    return {each: line for each, line in rest.items() if " " not in each}
