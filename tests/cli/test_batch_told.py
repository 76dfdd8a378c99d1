"""What is told of a run: on a terminal, elsewhere, and to nobody."""

from __future__ import annotations

import io

import pytest

from capt_local.batch.manifest import Fingerprint
from capt_local.batch.output import ErrorCode, Failure, LineWriter, OutputLine, RecordRef
from capt_local.batch.run import Progress
from capt_local.batch.supervisor import News
from capt_local.cli import batch_run
from capt_local.cli.batch_run import ProgressDisplay, progress_label, summary_line
from capt_local.report.terminal import Screen
from capt_local.report.views import Look

MARK = Fingerprint({}, {}, {"id": "fake"}, {"target": {"sha256": None}}, "capt", {})


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines() -> tuple[OutputLine, OutputLine]:
    """An answer of 30 tokens, and a failure."""
    origin, asked = LineWriter(MARK), RecordRef("a", 1, "00" * 32)
    answer = {
        "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 30, "prompt_tokens": 10},
        "capt": {},
        "timings": {},
    }
    failure = Failure(ErrorCode.CONTEXT_OVERFLOW, "too long")
    return origin.answered(asked, answer, 0.0), origin.failed(asked, failure, 0.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def running(clock: Clock) -> Progress:
    """Four records, of which two are done after 20 seconds of work."""
    progress = Progress(4, before=3, clock=clock)
    clock.now = 5.0
    progress.models_ready()
    for line in lines():
        progress.add(line)
    clock.now = 25.0
    return progress


def test_counts_speed_and_what_is_left(clock: Clock) -> None:
    progress = running(clock)
    assert (progress.done, progress.failed, progress.share) == (2, 1, 0.5)
    assert (progress.speed, progress.seconds_left) == (1.5, 20.0)
    assert progress_label(progress) == "2/4, 1.5 tokens/s, 20 s left, 1 failed"
    told = progress.as_object()
    assert told["failed"] == {"context_overflow": 1}
    assert (told["seconds"], told["load_seconds"], told["left"]) == (25.0, 5.0, 2)
    assert summary_line(told | {"failed_before": 0, "skipped": 0}) == (
        "1 done | 1 failed (context_overflow 1) | 3 done before | 2 left | 30 tokens (1.5/s) | 25 s"
    )


def test_what_failed_before_is_told_with_the_way_to_do_it_again(clock: Clock) -> None:
    told = Progress(0, before=3, clock=clock).as_object()
    assert summary_line(told | {"failed_before": 2, "skipped": 0}) == (
        "0 done | 3 done before, 2 of them failed (--retry-errors does those without an answer "
        "again) | 0 tokens (0.0/s) | 0 s"
    )


def test_a_run_that_has_not_begun_has_no_speed(clock: Clock) -> None:
    progress = Progress(2, clock=clock)
    assert (progress.speed, progress.seconds_left, progress.seconds) == (0.0, None, 0.0)
    assert progress_label(progress) == "0/2, 0.0 tokens/s"
    assert Progress(0, clock=clock).share == 1.0


def test_elsewhere_a_line_every_few_seconds(clock: Clock) -> None:
    err = io.StringIO()
    told = ProgressDisplay(Screen(io.StringIO(), err), clock)
    told.show(running(clock))
    for _ in range(100):
        clock.now += 0.1
        told.tick()
    shown = err.getvalue().splitlines()
    assert len(shown) == 2 or len(shown) == 3
    assert shown[0].startswith("2/4, ")


def test_a_terminal_gets_a_line_that_is_redrawn(clock: Clock) -> None:
    err = io.StringIO()
    told = ProgressDisplay(Screen(io.StringIO(), err, look_err=Look(width=80)), clock)
    told.show(running(clock))
    clock.now += 1.0
    told.tick()
    told.news(News(died="it was killed"))
    shown = err.getvalue()
    assert "\r2/4, 1.4 tokens/s" in shown and "50 %" in shown
    assert "note: The worker process died: it was killed. It is started again" in shown


def test_notices_of_the_models_are_told_once(clock: Clock) -> None:
    err = io.StringIO()
    told = ProgressDisplay(Screen(io.StringIO(), err), clock)
    for _ in range(2):
        told.news(News(ready={"notices": ["a notice"]}))
    assert err.getvalue() == "note: a notice\n"


class Broken(io.StringIO):
    """A pipe that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.tried = 0

    def write(self, text: str) -> int:
        self.tried += 1
        raise BrokenPipeError


def test_a_reader_that_has_gone_is_told_nothing_more(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[bool] = []
    monkeypatch.setattr(batch_run, "drop_output", lambda *, asides: dropped.append(asides))
    err = Broken()
    told = ProgressDisplay(Screen(io.StringIO(), err), clock)
    for _ in range(3):
        told.note("one")
    assert (err.tried, dropped) == (1, [True])
