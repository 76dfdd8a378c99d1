"""Exit codes by name, and the line that an error becomes. Which error has which: `errors`."""

from __future__ import annotations

import os
from enum import IntEnum

from capt_local.errors import CaptError, place_of
from capt_local.version import __version__


class ExitCode(IntEnum):
    """What a process says about its end."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    MODEL = 3
    MEMORY = 4
    CONTEXT = 5
    FAILED_RECORDS = 6
    INTERRUPTED = 130
    PIPE = 141  # as shells number the end of a program whose reader has gone (SIGPIPE)


def code_for(error: BaseException) -> ExitCode:
    """The exit code of an error; that of an unforeseen one is 1."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    return ExitCode(error.exit_code) if isinstance(error, CaptError) else ExitCode.UNEXPECTED


def line_for(error: BaseException) -> str:
    """The line that a person reads.

    The message of an unforeseen exception may hold the user's text, so it has only the type and
    the place in this package.
    """
    if code_for(error) is ExitCode.INTERRUPTED:
        return "interrupted."
    if isinstance(error, CaptError):
        return str(error)
    return (
        f"unexpected {type(error).__name__} at {place_of(error)} (capt-local {__version__}). "
        "This is a defect, and this line holds nothing of your text: please report it. "
        "CAPT_LOCAL_DEBUG=1 shows the traceback, which may hold text."
    )


def wants_traceback() -> bool:
    """Whether the user asked to see tracebacks, text in them or not."""
    return os.environ.get("CAPT_LOCAL_DEBUG") == "1"
