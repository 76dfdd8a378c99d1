"""Whose turn it is: requests that need the same model wait for each other.

Each request is ordinary code that knows nothing of the others, in a coroutine of its own
(greenlet). All run in one thread, one at a time, in an order that depends on the requests alone;
only what models decode for them may run in several.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

from capt_local.decode.beside import Job, at_once, in_turn
from capt_local.decode.model import Model, Rows
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


@dataclass(slots=True, eq=False)
class _Wish:
    """What a request waits for, and what it got."""

    role: str
    lane: Any
    tokens: Sequence[int]
    rows: int
    answer: Rows | CaptError | None = None


class Turns(Generic[T]):
    """Runs requests side by side.

    Args:
        models: the lanes of each model, by role.
        places: how many requests run at once.
        pool: threads for the models that follow the target, but for one of them, so that they
            decode at the same time; None: one after the other.
    """

    def __init__(
        self, models: Mapping[str, Together], places: int, pool: Executor | None = None
    ) -> None:
        """Runs nothing yet."""
        self._models = dict(models)
        self._pool = pool
        # The target goes last: once all the others are through, all wait for it together.
        self._order = sorted(models, key=lambda role: role == "target")
        self._free = list(range(places))
        self._places: dict[Any, int] = {}
        self._waiting: dict[Any, Sequence[_Wish]] = {}
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
        wish, task = _Wish(role, lane, tokens, rows), getcurrent()
        # A part of a job waits through the job itself; see `beside`.
        task.parent.switch((wish,) if task in self._places else wish)
        if isinstance(wish.answer, CaptError):
            raise wish.answer
        assert wish.answer is not None
        return wish.answer

    def beside(self, jobs: Sequence[Job]) -> None:
        """Runs parts of a job so that they wait for their models at the same time; called by it.

        Raises:
            What a part raises; the others end where they are.
        """
        if len(jobs) < 2:
            return in_turn(jobs)
        parts = [greenlet(work) for _, work in jobs]
        try:
            wishes = [part.switch() for part in parts]
            while not all(part.dead for part in parts):
                going = [place for place, part in enumerate(parts) if not part.dead]
                self._home.switch([wishes[place] for place in going])
                for place in going:
                    wishes[place] = parts[place].switch()
        finally:
            for part in parts:
                if not part.dead:
                    part.throw(GreenletExit)

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
        """Decodes for requests that wait: the target alone, or all that follow it.

        Those that have what they wait for go on.
        """
        open_wishes: dict[str, list[_Wish]] = {}
        for wish in (wish for wishes in self._waiting.values() for wish in wishes):
            if wish.answer is None:
                open_wishes.setdefault(wish.role, []).append(wish)
        roles = [role for role in self._order if role in open_wishes]
        others = [role for role in roles if role != "target"]
        if self._pool is not None and len(others) > 1:
            at_once(self._pool, [partial(self._run, role, open_wishes[role]) for role in others])
        else:
            self._run(roles[0], open_wishes[roles[0]])
        ready = [
            task
            for task, wishes in self._waiting.items()
            if all(wish.answer is not None for wish in wishes)
        ]
        for task in ready:
            del self._waiting[task]
            self._go_on(task, task.switch)

    def _run(self, role: str, wishes: Sequence[_Wish]) -> None:
        """One model decodes for all that wait for it."""
        answers = self._models[role].run([(wish.lane, wish.tokens, wish.rows) for wish in wishes])
        for wish, answer in zip(wishes, answers, strict=True):
            wish.answer = answer

    def _abandon(self) -> None:
        """Ends what still runs, wherever it is."""
        for task in list(self._places):
            if not task.dead:
                task.parent = getcurrent()
                task.throw(GreenletExit)
        self._places.clear()
        self._waiting.clear()
