"""Keeps a worker at work, whatever becomes of it, until each record has an answer or a failure.

When a worker dies, the records that it had taken are suspects: a new worker gets them one at a
time, so that the record that kills workers is known. One with which three have died is given up.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from capt_local.batch import wire
from capt_local.batch.output import ErrorCode, Failure
from capt_local.batch.process import Death
from capt_local.errors import WorkerFailed

# Records that a worker holds for each that it answers at once: with fewer than one more than that,
# it would wait for a record while its answers waited for it.
_AHEAD = 2
GIVEN_UP = 5  # records in a row; then it is not the records
DEATHS = 3  # of workers with one record, and in a row without one


class Worker(Protocol):
    """What a `WorkerProcess` can do."""

    def tell(self, message: wire.Message) -> None:
        """Sends a message."""

    def event(self, seconds: float) -> wire.Message | Death | None:
        """What it says next."""

    def finish(self) -> None:
        """Lets it end."""

    def kill(self) -> None:
        """Ends it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a record.

    Attributes:
        key: of the record.
        answer: as `report.json.answer_object` gives it, or None.
        failure: why there is none.
    """

    key: int
    answer: dict[str, Any] | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class News:
    """What else happened: one of these is set.

    Attributes:
        loading: a role, and the share of its file that is checked, then loaded.
        ready: what a worker said once its models were loaded.
        died: why a worker died that is now replaced.
    """

    loading: tuple[str, float] | None = None
    ready: dict[str, Any] | None = None
    died: str = ""


class Crew:
    """Workers, one after the other.

    Args:
        start: starts a worker.
    """

    def __init__(self, start: Callable[[], Worker]) -> None:
        """Starts a worker, which loads nothing yet."""
        self._start = start
        self._worker = start()
        self._opening: wire.Message = {}
        self._window = 0
        self._ready = False
        self._ended = self._told_end = False
        self._waiting: deque[tuple[int, wire.Message]] = deque()
        self._hand: dict[int, wire.Message] = {}
        self._begun: dict[int, None] = {}
        self._suspects: set[int] = set()
        self._deaths: Counter[int] = Counter()
        self._idle_deaths = 0
        self._given_up = 0

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
        event = self._worker.event(seconds)
        if isinstance(event, Death):
            return self._died(event)
        if event is None or "hello" in event:
            return None
        if "loading" in event:
            return News(loading=(event["loading"], event["share"]))
        if "ready" in event:
            self._ready = True
            self._feed()
            return News(ready=event["ready"])
        if "begun" in event:
            self._begun[event["begun"]] = None
            return None
        return self._done(event)

    def finish(self) -> None:
        """Lets the worker end by itself, when all is done."""
        self._worker.finish()

    def kill(self) -> None:
        """Ends the worker; records that it has are dropped."""
        self._worker.kill()

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
        """Starts another worker, and sees to the records of the one that died."""
        held, self._begun = list(self._begun), {}
        if not self._ready or (death.error is not None and not held):
            raise death.at_start()
        given_up = self._blamed(held, death)
        # What it had not begun waits as before, behind what it had.
        left = [(key, ask) for key, ask in self._hand.items() if key != given_up]
        self._given_up += given_up is not None
        left.sort(key=lambda item: item[0] not in self._suspects)
        self._hand.clear()
        self._waiting.extendleft(reversed(left))
        self._worker, self._ready, self._told_end = self._start(), False, False
        self._worker.tell(self._opening)
        if given_up is None:
            return News(died=death.cause)
        message = f"The worker process died {DEATHS} times with this record; last, {death.cause}."
        return Outcome(given_up, failure=Failure(ErrorCode.WORKER_DIED, message))

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
        if len(held) == 1 and self._deaths[held[0]] >= DEATHS:
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
