"""Models beside each other: who runs where, and what becomes of errors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from capt_local.decode import beside as room
from capt_local.decode.beside import beside
from capt_local.decode.cached import CachedModel
from capt_local.errors import Cancelled, ContextOverflow, NumericalError
from tests.decode.trios import PROXY
from tests.fakes import FakeModel

WAIT = 10.0  # seconds, after which a test fails instead of waiting for ever


class Told(FakeModel):
    """Keeps a record of how many threads it was given."""

    def __init__(self, threads: int) -> None:
        super().__init__(PROXY, 1, threads=threads)
        self.given: list[int] = []

    def use_threads(self, count: int) -> None:
        super().use_threads(count)
        self.given.append(count)


def models(count: int = 2, threads: int = 2) -> list[CachedModel]:
    return [CachedModel(f"model-{place}", Told(threads)) for place in range(count)]


def given(cached: CachedModel) -> list[int]:
    assert isinstance(cached.model, Told)
    return cached.model.given


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def raising(error: BaseException) -> Callable[[], None]:
    def job() -> None:
        raise error

    return job


def nothing() -> None:
    pass


def test_they_run_at_the_same_time_each_on_its_share(pool: ThreadPoolExecutor) -> None:
    both = models(threads=5)
    met = threading.Barrier(2)
    seen: list[tuple[list[int], bool]] = []

    def job() -> None:
        met.wait(WAIT)  # breaks where one waits for the other to end
        seen.extend((list(given(cached)), cached.by_itself) for cached in both)

    beside(pool, [(cached, job) for cached in both])
    assert seen == [([2], False)] * 4
    assert [given(cached) for cached in both] == [[2, 5]] * 2
    assert all(cached.by_itself for cached in both)


@pytest.mark.parametrize(("threads", "count"), [(1, 2), (0, 2), (2, 3), (8, 1)])
def test_without_a_core_for_each_they_run_in_turn(
    pool: ThreadPoolExecutor, threads: int, count: int
) -> None:
    where: list[int] = []
    some = models(count, threads)
    beside(pool, [(cached, lambda: where.append(threading.get_ident())) for cached in some])
    assert where == [threading.get_ident()] * count
    assert not any(given(cached) for cached in some)


def test_nothing_to_do_is_nothing(pool: ThreadPoolExecutor) -> None:
    beside(pool, [])
    beside(None, [])


GRAVE = [
    (NumericalError("nan"), Cancelled("stop")),
    (NumericalError("nan"), ContextOverflow({"base": 9}, 8)),
    (ContextOverflow({"base": 9}, 8), Cancelled("stop")),
    (KeyboardInterrupt(), NumericalError("nan")),
    (SystemExit(3), Cancelled("stop")),
    (ValueError("a mistake"), Cancelled("stop")),
]


@pytest.mark.parametrize(("worse", "other"), GRAVE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("turned", [False, True])
def test_the_gravest_error_is_the_one_that_is_raised(
    pool: ThreadPoolExecutor, worse: BaseException, other: BaseException, turned: bool
) -> None:
    both = models()
    errors = [other, worse] if turned else [worse, other]
    with pytest.raises(type(worse)) as raised:
        beside(pool, list(zip(both, map(raising, errors), strict=True)))
    assert raised.value is worse
    assert [given(cached) for cached in both] == [[1, 2]] * 2
    assert all(cached.by_itself for cached in both)


@pytest.mark.parametrize("first", [nothing, raising(NumericalError("nan"))])
def test_an_interrupt_while_waiting_is_not_lost_and_nobody_is_left_running(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, first: Callable[[], None]
) -> None:
    go_on, ended = threading.Event(), threading.Event()
    interrupts = [KeyboardInterrupt(), KeyboardInterrupt()]

    def wait(futures: Sequence[Future[None]]) -> Any:
        if interrupts:
            raise interrupts.pop()
        go_on.set()
        for future in futures:
            future.exception(WAIT)

    def slow() -> None:
        assert go_on.wait(WAIT)
        ended.set()

    monkeypatch.setattr(room, "wait", wait)
    both = models()
    with pytest.raises(KeyboardInterrupt):
        beside(pool, [(both[0], first), (both[1], slow)])
    assert ended.is_set() and not interrupts
    assert [given(cached) for cached in both] == [[1, 2]] * 2


def test_a_pool_that_has_ended_is_told_and_the_threads_are_given_back() -> None:
    ended = ThreadPoolExecutor(1)
    ended.shutdown()
    both, ran = models(), []
    with pytest.raises(RuntimeError):
        beside(ended, [(cached, lambda: ran.append(1)) for cached in both])
    assert not ran and [given(cached) for cached in both] == [[1, 2]] * 2
