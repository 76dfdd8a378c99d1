"""Models that run beside each other, each on its share of the cores.

Two small models keep two cores busier than one after the other on both: the work of a single token
is in pieces too small to be divided well. How many threads a model runs on decides the last bits of
its logits, so the share depends on what runs alone, never on the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, wait

from capt_local.decode.cached import CachedModel
from capt_local.errors import Cancelled, ContextOverflow

Job = tuple[CachedModel, Callable[[], None]]


def beside(pool: Executor | None, jobs: Sequence[Job]) -> None:
    """Runs each job, in one thread for each model if the machine has cores for them.

    Args:
        pool: of at least one thread fewer than there are jobs; None: one after the other.
        jobs: each for another model.

    Raises:
        Whatever a job raises, after all have ended. Of several errors the gravest: an interrupt,
        then what is wrong with a model, then a full context, then the wish to stop.
    """
    threads = min((cached.model.threads for cached, _ in jobs), default=0)
    share = threads // max(len(jobs), 1)
    if pool is None or len(jobs) < 2 or share < 1:
        for _, job in jobs:
            job()
        return
    models = [cached for cached, _ in jobs]
    others: list[Future[None]] = []
    errors: list[BaseException] = []
    try:
        for cached in models:
            cached.model.use_threads(share)
            cached.by_itself = False
        for _, job in jobs[1:]:
            others.append(pool.submit(job))
        jobs[0][1]()
    except BaseException as error:
        errors.append(error)
    # Nobody may use these models before they are through, whatever happens meanwhile.
    errors += _surely(lambda: wait(others))
    errors += _surely(lambda: _give_back(models))
    ends = (other.exception() for other in others)
    errors += [end for end in ends if end is not None]
    if errors:
        raise min(errors, key=_gravity)


def _surely(work: Callable[[], object]) -> list[BaseException]:
    """Does what has to be done, again after each interrupt; these are returned."""
    held: list[BaseException] = []
    while True:
        try:
            work()
            return held
        except KeyboardInterrupt as error:
            held.append(error)


def _give_back(models: Sequence[CachedModel]) -> None:
    """Lets each model run on all of its threads again."""
    for cached in models:
        cached.model.use_threads(cached.model.threads)
        cached.by_itself = True


def _gravity(error: BaseException) -> int:
    """0 for the gravest."""
    if not isinstance(error, Exception):
        return 0
    return 3 if isinstance(error, Cancelled) else 2 if isinstance(error, ContextOverflow) else 1
