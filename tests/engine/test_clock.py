"""Time that several share counts once."""

from __future__ import annotations

import pytest

from capt_local.engine import clock as module
from capt_local.engine.clock import BusyClock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: time[0])
    return time


def test_one_after_the_other_adds_up(now: list[float]) -> None:
    clock = BusyClock()
    for started, ended in ((1.0, 2.0), (5.0, 7.5)):
        now[0] = started
        with clock:
            now[0] = ended
    assert clock.seconds == 3.5


def test_what_two_share_counts_once_and_a_failure_too(now: list[float]) -> None:
    clock = BusyClock()
    with clock:
        now[0] = 1.0
        with pytest.raises(ValueError), clock:
            now[0] = 3.0
            raise ValueError
        now[0] = 4.0
    assert clock.seconds == 4.0
