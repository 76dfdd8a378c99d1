"""Ctrl-C: the first one asks the work to stop between two steps, the second one ends it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from capt_local.errors import Cancelled


class Interrupt:
    """Catches Ctrl-C while it is entered; use from the main thread.

    Attributes:
        requested: whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether to stop; the decoder asks this between two steps."""
        return self.requested

    def check(self) -> None:
        """Ends work that has no half result, such as loading.

        Raises:
            Cancelled: Ctrl-C was pressed.
        """
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
    """A signal asked the session to end while it waited for input."""


class Signals(Interrupt):
    """Catches Ctrl-C, SIGTERM and SIGHUP (a closed terminal) while it is entered.

    Attributes:
        leaving: the signal that asked to leave; None while none did.
        tick: called whenever the decoder asks whether to stop; None for nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.leaving: int | None = None
        self.tick: Callable[[], None] | None = None
        self._wake: Callable[[], None] | None = None
        self._waits = False

    def __call__(self) -> bool:
        """Whether to stop."""
        if self.tick is not None:
            self.tick()
        return self.requested

    def again(self) -> None:
        """Forgets a Ctrl-C; the next one stops what begins now."""
        self.requested = self.leaving is not None

    @property
    def code(self) -> int | None:
        """The exit code of the signal that asked to leave, as shells number it."""
        return None if self.leaving is None else 128 + self.leaving

    @contextmanager
    def waiting(self, wake: Callable[[], None] | None = None) -> Iterator[None]:
        """While input is waited for: Ctrl-C is KeyboardInterrupt there.

        A signal that asks to leave calls `wake`, or without one raises `Leave`.
        """
        self._wake, self._waits = wake, True
        try:
            if self.leaving is not None:
                raise Leave
            yield
        finally:
            self._wake, self._waits = None, False

    def __enter__(self) -> Self:
        super().__enter__()
        for number in (signal.SIGTERM, signal.SIGHUP):
            # What nohup has switched off stays off.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._asked_to_leave)
        return self

    def _pressed(self, number: int, frame: FrameType | None) -> None:
        if self._waits:
            raise KeyboardInterrupt
        super()._pressed(number, frame)

    def _asked_to_leave(self, number: int, frame: FrameType | None) -> None:
        self.leaving = number
        self.requested = True
        if self._wake is not None:
            self._wake()
        elif self._waits:
            raise Leave
