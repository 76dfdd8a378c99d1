"""Models that run beside each other, each on its share of the cores.

Two small models keep two cores busier than one after the other on both: the work of a single token
is in pieces too small to be divided well. How many threads a model runs on decides the last bits of
its logits, so the share depends on what runs alone, never on the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, wait

from capt_local.decode.cached import CachedModel

Job = tuple[CachedModel, Callable[[], None]]


def beside(pool: Executor | None, jobs: Sequence[Job]) -> None:
    """Runs each job, in one thread for each model if the machine has cores for them.

    Args:
        pool: of at least one thread fewer than there are jobs; None: one after the other.
        jobs: each for another model.

    Raises:
        Whatever a job raises, after all have ended.
    """
    threads = min((cached.model.threads for cached, _ in jobs), default=0)
    share = threads // max(len(jobs), 1)
    if pool is None or len(jobs) < 2 or share < 1:
        for _, job in jobs:
            job()
        return
    others: list[Future[None]] = []
    interrupted: BaseException | None = None
    try:
        for cached, _ in jobs:
            cached.model.use_threads(share)
            cached.by_itself = False
        others += [pool.submit(job) for _, job in jobs[1:]]
        jobs[0][1]()
    finally:
        # Nobody may use these models before they are through, whatever happens meanwhile.
        while True:
            try:
                wait(others)
                break
            except KeyboardInterrupt as error:
                interrupted = error
        for cached, _ in jobs:
            cached.model.use_threads(cached.model.threads)
            cached.by_itself = True
    if interrupted is not None:
        raise interrupted
    for other in others:
        other.result()
