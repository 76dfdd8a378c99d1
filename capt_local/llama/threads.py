"""How many threads compute: all physical cores of an idle machine, fewer where others use them.

llama.cpp's threads wait for each other several hundred times a token. Where another process has
taken the core of one of them, all wait for it, so with more threads than free cores a token takes
many times as long as with one thread. So the time that other processes take is looked at twice a
second, and the threads of each context follow it; without flash attention the result does not
depend on their number. While they wait they spin for a short time only, as far as that can be set
(OpenMP).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_INTERVAL = 0.5  # seconds between two looks
_SHORTEST = 0.05  # seconds that say something; the system counts in units of 0.01
_SLACK = 0.35  # of a core that others may take before a thread is given up
_SPINS = "30000"  # turns of a waiting thread before it sleeps; OpenMP's own number is 300,000


def limit_spinning() -> None:
    """Lets waiting threads of OpenMP sleep soon; only before llama.cpp is loaded.

    What the user has set in the environment stays.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def physical_cores() -> int:
    """Physical cores that this process may use; threads beyond them only wait for each other."""
    usable = min(len(_usable_cpus()), _quota())
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def control_groups() -> Iterator[Path]:
    """The folders of the control groups that this process is in, innermost first (cgroup v2)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line[3:] for line in lines if line.startswith("0::"))
    except (OSError, StopIteration):
        return
    folder = _CONTROL_GROUPS / own.lstrip("/")
    while folder != _CONTROL_GROUPS.parent:
        yield folder
        folder = folder.parent


@cache
def _quota() -> int:
    """Cores that the control groups of this process allow; else very many."""
    found = [1 << 20]
    for folder in control_groups():
        with contextlib.suppress(OSError, ValueError):  # no such group, or no limit ("max")
            quota, period = (folder / "cpu.max").read_text().split()
            found.append(max(1, int(quota) // int(period)))
    return min(found)


class _Sample(NamedTuple):
    """Seconds of the clock, of all work on the usable processors, of this process."""

    clock: float
    busy: float
    own: float


class BusyCores:
    """What other processes take of the machine.

    Attributes:
        cores: processors (threads of cores) that this process may use.
        others: how many of them other processes took lately; 0 at first.
    """

    def __init__(self) -> None:
        self._usable = _usable_cpus()
        self.cores = len(self._usable)
        self.others = 0.0
        self._last = self._sample()

    def threads(self) -> int:
        """Threads that find a core each: at least one, at most the physical cores."""
        if time.monotonic() - self._last.clock >= _SHORTEST:
            before, self._last = self._last, self._sample()
            now = self._last
            work = (now.busy - before.busy) - (now.own - before.own)
            self.others = min(float(self.cores), max(0.0, work / (now.clock - before.clock)))
        return max(1, min(physical_cores(), int(self.cores - self.others + _SLACK)))

    def _sample(self) -> _Sample:
        times = psutil.cpu_times(percpu=True)
        busy = 0.0
        for number in self._usable:
            if number < len(times):
                one = times[number]
                waiting = one.idle + getattr(one, "iowait", 0.0)
                counted_twice = getattr(one, "guest", 0.0) + getattr(one, "guest_nice", 0.0)
                busy += sum(one) - waiting - counted_twice
        return _Sample(time.monotonic(), busy, time.process_time())


@cache
def busy_cores() -> BusyCores:
    """Those of this process, counted from the first call on."""
    return BusyCores()


class ThreadCount:
    """The threads of one context: a fixed number, or as many as find a core.

    Args:
        fixed: the number; None to go by the machine.
        follow: whether the number may change later. Flash attention on a CPU divides the cells
            among the threads and sums in another order with another number of them.

    Attributes:
        count: for now.
    """

    def __init__(self, fixed: int | None, follow: bool = True) -> None:
        self._fixed = fixed is not None or not follow
        self.count = fixed or busy_cores().threads()
        self._next = time.monotonic() + _INTERVAL

    def changed(self) -> bool:
        """Whether there is another count since the last call; looks twice a second."""
        if self._fixed or time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + _INTERVAL
        before, self.count = self.count, busy_cores().threads()
        return self.count != before


def _usable_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
