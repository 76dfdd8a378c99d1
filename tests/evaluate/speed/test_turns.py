"""Modes take turns, and prompts that do not fit are left out of all of them."""

from __future__ import annotations

import pytest

from capt_local.errors import UsageError
from capt_local.evaluate.speed.questions import Question
from capt_local.evaluate.speed.turns import take_turns
from tests.evaluate.speed.answers import ScriptedMode

A, B, C = (Question(name) for name in "abc")


def test_the_order_rotates_and_the_first_prompt_is_warmed_up() -> None:
    asked: list[tuple[str, object]] = []
    modes = {name: ScriptedMode(name, asked) for name in ("x", "y", "z")}
    parts: list[float] = []
    found = take_turns(modes, [A, B], parts.append)
    assert asked == [
        *[("x", "a"), ("y", "a"), ("z", "a")],
        *[("x", "a"), ("y", "a"), ("z", "a")],
        *[("y", "b"), ("z", "b"), ("x", "b")],
    ]
    assert parts[-1] == 1.0 and parts == sorted(parts)
    assert [list(one.taken) for one in found.rounds] == [["x", "y", "z"]] * 2


def test_a_prompt_that_one_mode_cannot_take_is_left_out_of_all() -> None:
    asked: list[tuple[str, object]] = []
    modes = {"x": ScriptedMode("x", asked), "y": ScriptedMode("y", asked, too_long="a")}
    found = take_turns(modes, [A, B, C])
    assert found.too_long == [0]
    assert [one.number for one in found.rounds] == [1, 2]
    assert len(found.of("x")) == len(found.of("y")) == 2


def test_nothing_that_fits_is_told() -> None:
    modes = {"x": ScriptedMode("x", [], too_long="a")}
    with pytest.raises(UsageError, match="No prompt fits"):
        take_turns(modes, [A])
