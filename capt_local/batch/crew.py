"""Keeps a worker at work, whatever becomes of it, until each record has an answer or a failure.

When a worker dies, the records that it had taken are suspects: a new worker gets them one at a
time, so that the record that kills workers is known. One with which three have died is given up,
and so is one with which two have hung, since that takes longer.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from capt_local.batch import wire
from capt_local.batch.events import News, Outcome, Worker
from capt_local.batch.output import ErrorCode, Failure
from capt_local.batch.process import Death
from capt_local.errors import WorkerFailed

# Records that a worker holds for each that it answers at once: with fewer than one more than that,
# it would wait for a record while its answers waited for it.
_AHEAD = 2
GIVEN_UP = 5  # records in a row; then it is not the records
DEATHS = 3  # of workers with one record, and in a row without one
HANGS = 2
# Seconds until models are loaded again where that has just failed: memory may come free.
PAUSES = (2.0, 10.0, 60.0)
_TURN, _TURNS = 0.1, 100  # seconds, and how often a worker that is to end is waited for


class Crew:
    """Workers, one after the other.

    Args:
        start: starts a worker.
        patience: seconds that a worker with records may show no sign of going on.
        pauses: seconds before each try to load the models again.
    """

    def __init__(
        self,
        start: Callable[[], Worker],
        *,
        patience: float = math.inf,
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        """Starts a worker, which loads nothing yet."""
        self._start, self._patience, self._pauses = start, patience, tuple(pauses)
        self._worker = start()
        self._opening: wire.Message = {}
        self._window = 0
        self._ready = self._gone = self._proved = False
        self._ended = self._told_end = False
        self._waiting: deque[tuple[int, wire.Message]] = deque()
        self._hand: dict[int, wire.Message] = {}
        self._begun: dict[int, None] = {}
        self._suspects: set[int] = set()
        self._deaths: Counter[int] = Counter()
        self._idle_deaths = self._given_up = self._tries = 0
        self._pause = self._silent = 0.0

    def hello(self, seconds: float) -> dict[str, Any] | None:
        """What the first worker says before it loads its models; None where it says nothing yet.

        Raises:
            CaptError: it cannot start.
        """
        event = self._worker.event(seconds)
        if isinstance(event, Death):
            raise event.at_start()
        return event["hello"] if event else None

    def load(self, opening: dict[str, Any]) -> None:
        """Lets it load the models.

        Args:
            opening: an `Opening`, packed.
        """
        self._opening, self._window = {"open": opening}, _AHEAD * opening["parallel"]
        self._worker.tell(self._opening)

    @property
    def room(self) -> bool:
        """Whether it takes another record now."""
        return len(self._waiting) + len(self._hand) < self._window

    @property
    def idle(self) -> bool:
        """Whether there is no record that has no outcome."""
        return not self._waiting and not self._hand

    def put(self, key: int, ask: wire.Message) -> None:
        """Takes a record."""
        self._waiting.append((key, ask))
        self._feed()

    def no_more(self) -> None:
        """There will be no other records."""
        self._ended = True
        self._feed()

    def take(self, seconds: float) -> Outcome | News | None:
        """What happens next; None where nothing does for so long.

        Raises:
            CaptError: a worker cannot be started or cannot load the models, or workers die again
                and again without a record, or with every record.
        """
        if self._gone:
            return self._replaced(seconds)
        left = seconds
        while (event := self._worker.event(left)) is not None:
            self._silent, left = 0.0, 0.0
            if isinstance(event, Death):
                return self._died(event)
            if (found := self._heard(event)) is not None:
                return found
        return self._waited(left)

    def finish(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Lets the worker end by itself, when all is done.

        Args:
            stop: asked ten times a second; true ends it.
        """
        for _ in range(_TURNS):
            if self._worker.ended(_TURN) or stop():
                break
        self._worker.kill()

    def kill(self) -> None:
        """Ends the worker; records that it has are dropped."""
        self._worker.kill()

    def _heard(self, event: wire.Message) -> Outcome | News | None:
        """What a message tells the run; None for what only the crew wants to know."""
        if "loading" in event:
            return News(loading=(event["loading"], event["share"]))
        if "ready" in event:
            self._ready = True
            self._feed()
            return News(ready=event["ready"])
        if "begun" in event:
            self._begun[event["begun"]] = None
            self._proved, self._tries = True, 0
            return None
        if "answered" in event or "failed" in event:
            return self._done(event)
        return None

    def _waited(self, seconds: float) -> Outcome | News | None:
        """Nothing came for so long. Only time that was spent listening counts."""
        self._silent += seconds
        if not self._hand or self._silent < self._patience:
            return None
        self._worker.kill()
        return self._died(Death(f"it went on with nothing for {self._silent:.0f} s", hung=True))

    def _done(self, event: wire.Message) -> Outcome:
        key = event["answered"] if "answered" in event else event["failed"]
        self._settled(key)
        self._idle_deaths = self._given_up = 0
        self._feed()
        if "answered" in event:
            return Outcome(key, answer=event["answer"])
        return Outcome(key, failure=Failure(ErrorCode(event["code"]), event["message"]))

    def _settled(self, key: int) -> None:
        self._hand.pop(key, None)
        self._begun.pop(key, None)
        self._deaths.pop(key, None)
        self._suspects.discard(key)

    def _died(self, death: Death) -> Outcome | News:
        """Sees to the records of a worker that died; the next `take` replaces it."""
        held, self._begun = list(self._begun), {}
        self._gone, self._silent = True, 0.0
        if not self._ready or (death.error is not None and not held):
            return self._not_loaded(death)
        given_up = self._blamed(held, death)
        self._ask_again()
        if given_up is None:
            return News(died=death.cause)
        self._given_up += 1
        return Outcome(given_up, failure=_failure(death))

    def _ask_again(self) -> None:
        """What the worker had waits as before; what it had not begun behind what it had."""
        left = sorted(self._hand.items(), key=lambda item: item[0] not in self._suspects)
        self._hand.clear()
        self._waiting.extendleft(reversed(left))
        self._ready = self._told_end = False

    def _not_loaded(self, death: Death) -> News:
        """A worker died before it could answer anything: a model or memory is the reason."""
        if not self._proved or self._tries >= len(self._pauses):
            raise death.at_start()
        self._pause, self._tries = self._pauses[self._tries], self._tries + 1
        self._ask_again()
        return News(unloaded=(death.cause, self._pause))

    def _replaced(self, seconds: float) -> News | None:
        """Starts another worker, when it is time."""
        if self._pause > 0:
            rest = min(seconds, self._pause)
            time.sleep(rest)
            self._pause -= rest
            return None
        try:
            self._worker = self._start()
        except WorkerFailed as error:
            return self._not_loaded(Death(str(error).rstrip("."), error=error))
        self._gone = False
        self._worker.tell(self._opening)
        return None

    def _blamed(self, held: list[int], death: Death) -> int | None:
        """Counts a death against the records that the worker had; the one that is given up."""
        self._idle_deaths = 0 if held else self._idle_deaths + 1
        if self._given_up >= GIVEN_UP:
            raise WorkerFailed(
                f"{GIVEN_UP} records in a row were given up, so it is not the records; the worker "
                f"process dies whatever it is asked. Last, {death.cause}."
            )
        if self._idle_deaths >= DEATHS:
            raise WorkerFailed(
                f"The worker process died {DEATHS} times without a record; last, {death.cause}."
            )
        self._suspects.update(held)
        self._deaths.update(held)
        if len(held) == 1 and self._deaths[held[0]] >= (HANGS if death.hung else DEATHS):
            self._settled(held[0])
            return held[0]
        return None

    def _feed(self) -> None:
        """Gives the worker what it may have."""
        if not self._ready:
            return
        limit = 1 if self._suspects else self._window
        while self._waiting and len(self._hand) < limit:
            key, ask = self._waiting.popleft()
            self._hand[key] = ask
            self._worker.tell({**ask, "alone": True} if self._suspects else ask)
        if self._ended and not self._waiting and not self._told_end:
            self._told_end = True
            self._worker.tell({"end": True})


def _failure(death: Death) -> Failure:
    """Why a record is given up."""
    if death.hung:
        message = f"The worker process was ended again: with this record alone, {death.cause}."
        return Failure(ErrorCode.TIMED_OUT, message)
    message = f"The worker process died {DEATHS} times with this record; last, {death.cause}."
    return Failure(ErrorCode.WORKER_DIED, message)
