"""Failures that may pass: how often something is tried again, and how long one waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from capt_local.errors import ModelError

Tell = Callable[[str], None]


class Passing(Exception):
    """A failure that may be gone next time; its text is ours and holds nothing of the hub's.

    Attributes:
        wait: seconds that the hub asks to wait; None where it says nothing.
    """

    def __init__(self, why: str, wait: float | None = None) -> None:
        """Takes the reason as a part of a sentence."""
        super().__init__(why)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a hub is put up with.

    Attributes:
        tries: how often the same is tried before it is given up.
        first: seconds before the second try; each further wait is twice as long.
        longest: seconds that are waited at most, also where the hub asks for more.
        answer: seconds in which something has to come.
        whole: seconds in which an answer of the hub's own has to be whole.
        window: seconds in which `least` bytes of a file have to come.
        least: bytes.
        sleep: waits.
        clock: seconds that only go forward.
    """

    tries: int = 5
    first: float = 1.0
    longest: float = 60.0
    answer: float = 30.0
    whole: float = 60.0
    window: float = 60.0
    least: int = 1 << 16
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def pause(self, failed: int, error: Passing, what: str, tell: Tell) -> None:
        """Waits before the next try.

        Args:
            failed: tries that have failed until now, from 1 on.
            error: of the last one.
            what: was tried, for people.
            tell: says what is going on.

        Raises:
            ModelError: it was the last one, or the hub asks for more patience than there is.
        """
        if error.wait is not None and error.wait > self.longest:
            raise ModelError(
                f"{what}: {error}, and asks to wait {error.wait:,.0f} seconds. Give the same "
                "command again then; what is there is kept."
            )
        if failed >= self.tries:
            raise ModelError(
                f"{what}: {error}, {failed} times in a row. What is there is kept: give the same "
                "command again to go on."
            )
        wait = error.wait or min(self.first * 2 ** (failed - 1), self.longest)
        tell(f"{what}: {error}; again in {wait:.0f} s.")
        self.sleep(wait)
