"""The twenty prompts are there, different, and of the kinds that the models are trained for."""

from __future__ import annotations

import pytest

from scripts.train_demo_trio import __main__ as command
from scripts.train_demo_trio.ask import read_prompts
from tests.small_trio import SMALL_TRIO


def test_all_answers_are_shown_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["ask", str(SMALL_TRIO), "--threads", "1", "--max-tokens", "2"])
    shown = capsys.readouterr().out
    for each in read_prompts():
        assert f"{each['id']} · {each['kind']}" in shown
    for method in ("target", "capt", "expert"):
        assert f"{method}: " in shown
    assert shown.count("of 20 ended by themselves") == 3
