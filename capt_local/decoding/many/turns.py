"""Whose turn it is: requests that need the same model wait for each other.

Each request is ordinary code that knows nothing of the others, in a coroutine of its own
(greenlet). All run in one thread, one at a time, in an order that depends on the requests alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

from capt_local.decoding.model import Model, Rows
from capt_local.errors import CaptError

T = TypeVar("T")


class Together(Protocol):
    """Lanes of one model, which decode together.

    Attributes:
        lanes: each is a model by itself.
        most_together: so many tokens of a lane go along with those of others; more by themselves.
    """

    most_together: int

    @property
    def lanes(self) -> Sequence[Model]:
        """See the class."""
        ...

    def share(self, source: Any, target: Any, length: int) -> bool:
        """Gives a lane the first tokens of another; False where that cannot be done."""
        ...

    def run(self, parts: Sequence[tuple[Any, Sequence[int], int]]) -> list[Rows | CaptError]:
        """Appends tokens to lanes: for each (lane, tokens, rows) its rows, or what went wrong."""
        ...


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a request waits for."""

    role: str
    lane: Any
    tokens: Sequence[int]
    rows: int


class Turns(Generic[T]):
    """Runs requests side by side.

    Args:
        models: the lanes of each model, by role.
        places: how many requests run at once.
    """

    def __init__(self, models: Mapping[str, Together], places: int) -> None:
        """Runs nothing yet."""
        self._models = dict(models)
        # The target goes last: once all the others are through, all wait for it together.
        self._order = sorted(models, key=lambda role: role == "target")
        self._free = list(range(places))
        self._places: dict[Any, int] = {}
        self._waiting: dict[Any, _Wish] = {}
        self._done: list[T] = []
        self._home: Any = None

    def results(self, jobs: Iterator[Callable[[int], T]]) -> Generator[T, None, None]:
        """Runs jobs, each at a place of its own, and yields what they return as they end.

        A new one is taken only when a place is free and all results so far have been fetched.

        Args:
            jobs: told their place, 0 to places - 1. What they raise ends all of them.
        """
        more = True
        try:
            while True:
                while self._free and more:
                    job = next(jobs, None)
                    more = job is not None
                    if job is not None:
                        self._start(job)
                        yield from self._ended()
                if not self._waiting:
                    return
                self._decode()
                yield from self._ended()
        finally:
            self._abandon()

    def extend(self, role: str, lane: Any, tokens: Sequence[int], rows: int) -> Rows:
        """Appends tokens to a lane together with the others; called by a job, which waits."""
        answer: Rows = self._home.switch(_Wish(role, lane, tokens, rows))
        return answer

    def _start(self, job: Callable[[int], T]) -> None:
        place = self._free.pop(0)
        task = greenlet(job)
        self._places[task] = place
        self._go_on(task, task.switch, place)

    def _go_on(self, task: Any, enter: Callable[..., Any], *given: Any) -> None:
        """Lets a request run until it waits or ends."""
        self._home = getcurrent()
        task.parent = self._home
        said = enter(*given)
        if not task.dead:
            self._waiting[task] = said
            return
        self._free.append(self._places.pop(task))
        self._free.sort()
        self._done.append(said)

    def _ended(self) -> Iterator[T]:
        while self._done:
            yield self._done.pop(0)

    def _decode(self) -> None:
        """One model decodes for all that wait for it, and these go on."""
        wanted = {wish.role for wish in self._waiting.values()}
        role = next(role for role in self._order if role in wanted)
        tasks = [task for task, wish in self._waiting.items() if wish.role == role]
        wishes = [self._waiting[task] for task in tasks]
        answers = self._models[role].run([(wish.lane, wish.tokens, wish.rows) for wish in wishes])
        for task, answer in zip(tasks, answers, strict=True):
            del self._waiting[task]
            enter = task.throw if isinstance(answer, CaptError) else task.switch
            self._go_on(task, enter, answer)

    def _abandon(self) -> None:
        """Ends what still runs, wherever it is."""
        for task in list(self._places):
            if not task.dead:
                task.parent = getcurrent()
                task.throw(GreenletExit)
        self._places.clear()
        self._waiting.clear()
