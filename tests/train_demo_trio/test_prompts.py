"""The twenty prompts are there, different, and of the kinds that the models are trained for."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_cpp")

from scripts.train_demo_trio.ask import read_prompts


def test_twenty_different_prompts() -> None:
    prompts = read_prompts()
    assert len(prompts) == 20
    for key in ("id", "prompt"):
        assert len({each[key] for each in prompts}) == 20
    assert {each["kind"] for each in prompts} >= {"question", "section", "arithmetic", "visit"}
    assert all(len(each["prompt"]) < 1500 for each in prompts)
