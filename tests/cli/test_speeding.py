"""`--speed`: which way an answer is computed, and what is told about it."""

from __future__ import annotations

import json

import pytest

from capt_local.decoding.options import Speed
from tests.cli.conftest import Run
from tests.cli.fake_runtime import Script


@pytest.mark.parametrize("speed", list(Speed))
def test_the_speed_reaches_the_answer(run: Run, script: Script, speed: Speed) -> None:
    assert run("generate", "{models}", "-p", "What is it?", "--speed", speed).code == 0
    asked = next(call for call in script.calls if "asked" in call)
    assert asked["options"].speed is speed


def test_an_unknown_speed_is_refused(run: Run) -> None:
    result = run("generate", "{models}", "-p", "What is it?", "--speed", "warp")
    assert result.code == 2
    assert "--speed" in result.err


def test_what_was_drafted_is_told(run: Run, script: Script) -> None:
    result = run("generate", "{models}", "-p", "What is it?", "--json")
    told = json.loads(result.out)["capt"]["speed"]
    assert told["acceptance"] is None
    assert told["drafted"] == told["accepted"] == told["gated"] == 0
