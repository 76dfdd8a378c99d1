"""How long an evaluation will still take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from capt_local.evaluate.runs.exam import Exam
from capt_local.evaluate.runs.result import Result

_Pair = tuple[str, str]


class Remaining:
    """Counts what is left, and estimates its time from what was done.

    An item is expected to take what the items of its task took under its method so far; where
    none was done yet, what items took on average.

    Args:
        exams: all of them.
        methods: all of them.
        done: results that are there already.

    Attributes:
        total: items times methods.
        done: of these.
    """

    def __init__(
        self, exams: Sequence[Exam], methods: Collection[str], done: Sequence[Result] = ()
    ) -> None:
        """Counts the results that are there."""
        self._left = Counter(
            {(exam.task.name, name): len(exam.task.items) for exam in exams for name in methods}
        )
        self.total = self._left.total()
        self.done = 0
        self._seconds: Counter[_Pair] = Counter()
        self._counts: Counter[_Pair] = Counter()
        for result in done:
            self.add(result)

    def add(self, result: Result) -> None:
        """Counts one more."""
        pair = result.task, result.method
        self.done += 1
        self._left[pair] -= 1
        self._counts[pair] += 1
        self._seconds[pair] += result.seconds  # type: ignore[assignment]  # Counter adds floats too

    @property
    def share(self) -> float:
        """The part of the work that is done, 0 to 1."""
        return self.done / self.total if self.total else 1.0

    @property
    def seconds(self) -> float | None:
        """Time that is left; None before anything was done."""
        if not self.done:
            return None
        average = sum(self._seconds.values()) / self.done
        return sum(
            count * (self._seconds[pair] / self._counts[pair] if self._counts[pair] else average)
            for pair, count in self._left.items()
        )


def spoken_time(seconds: float) -> str:
    """A time that a person can read: 45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
