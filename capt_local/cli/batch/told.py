"""What is told of a batch run while it goes on, on standard error, and its summary."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any

from capt_local.batch.events import News
from capt_local.batch.progress import Progress
from capt_local.evaluate.runs.remaining import spoken_time
from capt_local.report.terminal import Screen, drop_output

_REDRAW = 0.1  # seconds between two pictures on a terminal
_EVERY = 5.0  # and between two lines elsewhere


class Told:
    """Tells. A reader that has gone is not told any more; the run goes on without it.

    Args:
        screen: to write to.
        clock: seconds, from any beginning.
    """

    def __init__(self, screen: Screen, clock: Callable[[], float] = time.monotonic) -> None:
        """Has told nothing."""
        self._screen, self._clock = screen, clock
        self._progress: Progress | None = None
        self._at = clock()
        self._gone = False
        self._ready = False

    def count(self, progress: Progress) -> None:
        """Tells from now on how far this is."""
        self._progress = progress

    def note(self, text: str) -> None:
        """Writes a line."""
        self._safely(lambda: self._screen.note(text))

    def notes(self, texts: Iterable[str]) -> None:
        """Writes lines, each marked as a note."""
        for text in texts:
            self.note(f"note: {text}")

    def fraction(self, label: str, share: float | None) -> None:
        """Redraws the progress line of a terminal, for what has no records."""
        if self._due(_REDRAW):
            self._safely(lambda: self._screen.progress(label, share))

    def news(self, news: News) -> None:
        """Tells what happened."""
        if news.loading is not None:
            role, share = news.loading
            self.fraction(f"loading {role}", share)
        if news.died:
            self.note(
                f"note: The worker process died: {news.died}. It is started again, and the "
                "records that it had are done again, one at a time."
            )
        if news.unloaded is not None:
            cause, pause = news.unloaded
            self.note(
                f"note: The models could not be loaded again: {cause}. The next try is in "
                f"{spoken_time(pause)}; what is finished is safe."
            )
        if news.ready is not None and not self._ready:
            self._ready = True
            self.notes(news.ready["notices"])
        self.tick()

    def tick(self) -> None:
        """Tells how far the run is, if it is time."""
        progress = self._progress
        if progress is None or progress.started is None:
            return
        if self._screen.asides_on_terminal:
            if self._due(_REDRAW):
                self._safely(lambda: self._screen.progress(label(progress), progress.share))
        elif self._due(_EVERY):
            self.note(label(progress))

    def clear(self) -> None:
        """Wipes the progress line."""
        self._safely(self._screen.clear_progress)

    def _due(self, seconds: float) -> bool:
        now = self._clock()
        if now - self._at < seconds:
            return False
        self._at = now
        return True

    def _safely(self, write: Callable[[], None]) -> None:
        if self._gone:
            return
        try:
            write()
        except (OSError, ValueError):
            self._gone = True
            with contextlib.suppress(OSError, ValueError):
                drop_output(asides=True)


def label(progress: Progress) -> str:
    """How far a run is: "412/1000, 35.2 tokens/s, 12 min left, 3 failed"."""
    parts = [f"{progress.done}/{progress.total}", f"{progress.speed:.1f} tokens/s"]
    if progress.left is not None:
        parts.append(f"{spoken_time(progress.left)} left")
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    return ", ".join(parts)


def summary_line(summary: dict[str, Any]) -> str:
    """The summary of a run for people."""
    failed = summary["failed"]
    parts = [f"{summary['done']} done"]
    if failed:
        each = ", ".join(f"{code} {count}" for code, count in failed.items())
        parts.append(f"{sum(failed.values())} failed ({each})")
    if summary["already_done"]:
        parts.append(f"{summary['already_done']} done before{_failed_before(summary)}")
    if summary["left"]:
        parts.append(f"{summary['left']} left")
    tokens, speed = summary["answer_tokens"], summary["answer_tokens_per_second"]
    parts.append(f"{tokens} tokens ({speed:.1f}/s)")
    parts.append(spoken_time(summary["seconds"]))
    return " | ".join(parts)


def _failed_before(summary: dict[str, Any]) -> str:
    """How many of what was done before have failed: why a run that did nothing ends with 6."""
    count = summary["failed_before"]
    # Answers of a wrong form stay, so not all that failed is done again.
    again = "(--retry-errors does those without an answer again)"
    return f", {count} of them failed {again}" if count else ""
