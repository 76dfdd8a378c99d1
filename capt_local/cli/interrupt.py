"""Ctrl-C: the first one asks the work to stop at a good place, the second one ends it."""

from __future__ import annotations

import signal
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
