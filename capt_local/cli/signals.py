"""Ctrl-C: the first one asks the work to stop at a good place, the second one ends it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from capt_local.errors import Cancelled


class Interrupt:
    """Catches Ctrl-C while it is entered; use from the main thread.

    Attributes:
        requested: whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        """Nothing has been asked yet."""
        self.requested = False
        self._before: Any = None

    def __call__(self) -> bool:
        """Whether to stop; what the decoder asks between two steps."""
        return self.requested

    def check(self) -> None:
        """Ends work that has no half result, such as loading.

        Raises:
            Cancelled: Ctrl-C was pressed.
        """
        if self.requested:
            raise Cancelled("interrupted")

    def __enter__(self) -> Interrupt:
        """Starts to listen."""
        self._before = signal.signal(signal.SIGINT, self._pressed)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves Ctrl-C as it was."""
        signal.signal(signal.SIGINT, self._before)

    def _pressed(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


# A closed terminal sends SIGHUP; Windows has none.
_LEAVE = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if getattr(signal, name, None)
)


class Leave(Exception):
    """A signal asked the session to end while it waited for input."""


class Signals(Interrupt):
    """Catches Ctrl-C, SIGTERM and SIGHUP while it is entered; use from the main thread.

    Attributes:
        leaving: the signal that asked to leave; None while none did.
        tick: called whenever the decoder asks whether to stop; None for nothing.
    """

    def __init__(self) -> None:
        """Nothing has been asked yet."""
        super().__init__()
        self.leaving: int | None = None
        self.tick: Callable[[], None] | None = None
        self._handlers: dict[int, Any] = {}
        self._wake: Callable[[], None] | None = None
        self._waits = False

    def __call__(self) -> bool:
        """Whether to stop."""
        if self.tick is not None:
            self.tick()
        return super().__call__()

    def again(self) -> None:
        """Forgets a Ctrl-C; the next one stops what begins now."""
        self.requested = self.leaving is not None

    @property
    def code(self) -> int | None:
        """The exit code of the signal that asked to leave, as shells number it."""
        return None if self.leaving is None else 128 + self.leaving

    @contextmanager
    def waiting(self, wake: Callable[[], None] | None = None) -> Iterator[None]:
        """While input is waited for.

        Args:
            wake: ends the waiting when a signal asks to leave; None raises `Leave` from there, and
                KeyboardInterrupt for Ctrl-C.
        """
        self._wake, self._waits = wake, True
        try:
            if self.leaving is not None:
                raise Leave
            yield
        finally:
            self._wake, self._waits = None, False

    def __enter__(self) -> Signals:
        """Starts to listen."""
        super().__enter__()
        for number in _LEAVE:
            # What nohup has switched off stays off.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._asked_to_leave)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves the signals as they were."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        super().__exit__(kind, error, trace)

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
