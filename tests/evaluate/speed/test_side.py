"""Prompts side by side, against the same prompts one at a time."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import pytest

from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.step import FinishReason
from capt_local.errors import Cancelled, NumericalError
from capt_local.evaluate.speed import side as module
from capt_local.evaluate.speed.questions import Question
from capt_local.evaluate.speed.side import SideBySide
from capt_local.evaluate.speed.turns import Round
from tests.evaluate.speed.answers import taken


class FakeRuntime:
    """Answers the requests in the wrong order, with the tokens 1, 2 and 3."""

    def __init__(self, clock: list[float]) -> None:
        self.asked: list[list[str]] = []
        self.finish = FinishReason.STOP
        self.error: Exception | None = None
        self._clock = clock

    def forget(self) -> None:
        pass

    def generate_many(self, asks: Any, *, parallel: int, cancel: Any) -> Iterator[Any]:
        self.asked.append([ask.prompt for ask in asks])
        self._clock[0] += 2.0
        for index in reversed(range(len(asks))):
            steps = tuple(types.SimpleNamespace(token=n, logp=-1.0) for n in (1, 2, 3))
            made = types.SimpleNamespace(finish=self.finish)
            yield types.SimpleNamespace(index=index, steps=steps, generation=made, error=self.error)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    return FakeRuntime(clock)


def rounds(count: int, tokens: tuple[int, ...] = (1, 2, 3)) -> list[Round]:
    # Each takes 0.5 s for its prompt and 2 steps at 1 a second.
    return [
        Round(n, Question(f"p{n}"), {"exact-steps": taken(tokens, rate=1.0, logps=[-1.0] * 3)})
        for n in range(count)
    ]


def side(runtime: FakeRuntime) -> SideBySide:
    return SideBySide(runtime, GenerateOptions(), 2, lambda: False)  # type: ignore[arg-type]


def test_whole_groups_are_answered_and_the_first_is_warmed_up(runtime: FakeRuntime) -> None:
    made = side(runtime)
    for one in rounds(5):
        made.add(one)
    assert runtime.asked == [["p0", "p1"], ["p0", "p1"], ["p2", "p3"]]
    found = made.figures(["exact-steps", "auto"], "exact-steps")
    assert found is not None
    # One at a time 2 * 2.5 s, side by side 2 s.
    assert found.ratios["exact-steps"].median == pytest.approx(2.5)
    assert list(found.ratios) == ["exact-steps"]
    assert (found.groups, found.tokens) == (2, 12)
    assert found.rate == pytest.approx(3.0) and found.requests == pytest.approx(1.0)
    assert found.same is not None and (found.same.same, found.same.answers) == (4, 4)


def test_the_lanes_are_what_memory_grew_by_at_the_first_group(
    runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = iter([500, 800])
    monkeypatch.setattr(module, "resident", lambda: next(seen))
    made = side(runtime)
    assert made.memory == 0
    for one in rounds(4):
        made.add(one)
    found = made.figures(["exact-steps"], "exact-steps")
    assert found is not None and found.as_object()["lanes_memory_bytes"] == 300


def test_answers_that_differ_are_told(runtime: FakeRuntime) -> None:
    made = side(runtime)
    for one in rounds(2, tokens=(1, 9, 3)):
        made.add(one)
    found = made.figures(["exact-steps"], "exact-steps")
    assert found is not None and found.same is not None
    assert found.same.same == 0
    assert [(d.prompt, d.step, d.tokens) for d in found.same.differences] == [
        (1, 1, (9, 2)),
        (2, 1, (9, 2)),
    ]


def test_without_a_whole_group_there_are_no_figures(runtime: FakeRuntime) -> None:
    made = side(runtime)
    made.add(rounds(1)[0])
    assert made.figures(["exact-steps"], "exact-steps") is None


def test_the_error_of_a_request_and_a_stop_end_the_run(runtime: FakeRuntime) -> None:
    runtime.finish = FinishReason.INTERRUPTED
    made = side(runtime)
    made.add(rounds(1)[0])
    with pytest.raises(Cancelled):
        made.add(rounds(2)[1])
    runtime.error = NumericalError("broken")
    made = side(runtime)
    made.add(rounds(1)[0])
    with pytest.raises(NumericalError):
        made.add(rounds(2)[1])
