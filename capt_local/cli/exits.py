"""Exit codes, one-line error messages, and handling of Ctrl-C and other signals.

Which error has which exit code: `errors`. The first Ctrl-C asks the work to stop between two steps,
the second one ends it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import Any, Self

from capt_local.errors import Cancelled, CaptError, error_location
from capt_local.version import __version__


class ExitCode(IntEnum):
    """The exit code of the process."""

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
    """The line that a person reads."""
    if code_for(error) is ExitCode.INTERRUPTED:
        return "interrupted."
    if isinstance(error, CaptError):
        return str(error)
    # The message of an unforeseen one may hold the user's text.
    return (
        f"unexpected {type(error).__name__} at {error_location(error)} (capt-local {__version__}). "
        "This is a defect, and this line holds nothing of your text: please report it. "
        "CAPT_LOCAL_DEBUG=1 shows the traceback, which may hold text."
    )


def wants_traceback() -> bool:
    """Whether the user asked to see tracebacks, text in them or not."""
    return os.environ.get("CAPT_LOCAL_DEBUG") == "1"


class Interrupt:
    """Catches Ctrl-C while it is entered: `requested` says if it was; use from the main thread."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether to stop; called by the decoder between steps."""
        return self.requested

    def check(self) -> None:
        """Raises Cancelled if Ctrl-C was pressed: for work without a half result, as loading."""
        if self.requested:
            raise Cancelled("interrupted")

    def __enter__(self) -> Self:
        self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._pressed)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _pressed(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class Leave(Exception):
    """SIGTERM or SIGHUP arrived while the session waited for input."""


class Signals(Interrupt):
    """Catches Ctrl-C, SIGTERM and SIGHUP (a closed terminal) while it is entered.

    Attributes:
        leaving: the SIGTERM or SIGHUP that was received; None without one.
        tick: called at each stop check of the decoder, unless None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.leaving: int | None = None
        self.tick: Callable[[], None] | None = None
        self._wake: Callable[[], None] | None = None  # while input is waited for

    def __call__(self) -> bool:
        """Whether to stop."""
        if self.tick is not None:
            self.tick()
        return self.requested

    def again(self) -> None:
        """Resets a handled Ctrl-C; the next one stops the work that begins now."""
        self.requested = self.leaving is not None

    @property
    def code(self) -> int | None:
        """The exit code for the signal in `leaving`, as shells number it; None without one."""
        return None if self.leaving is None else 128 + self.leaving

    @contextmanager
    def waiting(self, wake: Callable[[], None]) -> Iterator[None]:
        """Context for a wait for input: Ctrl-C raises KeyboardInterrupt.

        SIGTERM and SIGHUP call `wake`; one that came before raises `Leave`.
        """
        self._wake = wake
        try:
            if self.leaving is not None:
                raise Leave
            yield
        finally:
            self._wake = None

    def __enter__(self) -> Self:
        super().__enter__()
        for number in (signal.SIGTERM, signal.SIGHUP):
            # What nohup has switched off stays off.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_terminate)
        return self

    def _pressed(self, number: int, frame: FrameType | None) -> None:
        if self._wake is not None:
            raise KeyboardInterrupt
        super()._pressed(number, frame)

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self.leaving = number
        self.requested = True
        if self._wake is not None:
            self._wake()
