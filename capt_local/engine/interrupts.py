"""Ctrl-C while C code runs that calls back into Python.

Python runs its signal handlers inside such callbacks, and an exception raised there is printed
and lost. So the interrupt is held back, noted, and handed on once the C code has returned.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class HeldInterrupts:
    """Notes interrupts inside a `with` block and hands them on at its end.

    Attributes:
        asked: whether an interrupt came; C callbacks look at it to stop early.
    """

    def __init__(self) -> None:
        self.asked = False
        self._handler: object = None
        self._frame: FrameType | None = None

    def __enter__(self) -> Self:
        """Takes the handler's place, in the main thread (the only one that is interrupted)."""
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.getsignal(signal.SIGINT)
            if callable(self._handler):
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Puts the handler back and calls it if an interrupt came."""
        handler, frame = self._handler, self._frame
        self._handler = self._frame = None
        if callable(handler):
            signal.signal(signal.SIGINT, handler)
            if self.asked:
                handler(signal.SIGINT, frame)

    def _note(self, _signal: int, frame: FrameType | None) -> None:
        self.asked = True
        self._frame = frame
