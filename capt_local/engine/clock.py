"""The time in which llama.cpp computes, where several models may do so at once."""

from __future__ import annotations

import threading
import time
from types import TracebackType


class BusyClock:
    """Counts the time in which anybody is inside; time that two share counts once.

    Attributes:
        seconds: so far, as long as nobody is inside.
    """

    def __init__(self) -> None:
        """Nobody is inside."""
        self.seconds = 0.0
        self._inside = 0
        self._since = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        """Somebody more is inside."""
        with self._lock:
            if not self._inside:
                self._since = time.perf_counter()
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """One less."""
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self.seconds += time.perf_counter() - self._since
