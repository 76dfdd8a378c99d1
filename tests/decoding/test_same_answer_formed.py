"""Drafts beside what else decides an answer: a form, thoughts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from capt_local.decoding.options import (
    CombineOptions,
    GenerateOptions,
    SampleOptions,
    Speed,
    Structure,
)
from capt_local.prompting.markers import find_markers
from capt_local.prompting.messages import Prompt, Segment
from tests.decoding.answers import Habit, at_every_speed, lettered
from tests.decoding.test_reasoning import IDS, SAID, VOCABULARY, Speaker
from tests.decoding.test_structured import Texts
from tests.decoding.trios import PROXY
from tests.fakes import FakeModel

WORDS = ["ab", "bc", "ca", " ab", "abc", "cab ", "b c"]
OTHERS = ["ac", "ba", "cc", " b", "aab", "bc a"]
FORM = [b"abcabcabcabcab", b"abc cab ab cab ab ca", b"bcaabcabc"]


class Formed(Habit):
    """Keeps an answer to some texts, whatever the grammar says."""

    def constraint(self, grammar: str, lead: bytes) -> Texts:
        return Texts(self.vocabulary, FORM)


def models(seed: int, **kinds: Any) -> Mapping[str, FakeModel]:
    own, other = lettered(WORDS), lettered(OTHERS)
    return {
        "target": Formed(own, seed, **kinds),
        "expert": Habit(other, seed + 1, **kinds),
        "base": Habit(other, seed + 2, **kinds),
    }


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("plausibility", [1e-5, 0.3])
def test_structured_answers(temperature: float, plausibility: float) -> None:
    options = GenerateOptions(
        max_tokens=25,
        structure=Structure("root ::= any"),
        combine=CombineOptions(alphas=(0.5,), plausibility=plausibility),
        sample=SampleOptions(temperature=temperature, seed=3),
    )
    drafted = 0
    for seed in range(3):
        found = at_every_speed(lambda seed=seed: models(seed, max_rows=16), options)
        for told in found.values():
            assert told.generation.text_bytes in FORM and told.generation.structured
            drafted += told.generation.stats.drafted
    assert drafted


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("everywhere", [True, False])
def test_thoughts(opened: bool, everywhere: bool) -> None:
    """Reasoning is the target's alone; drafts before and behind do not mix the two up."""
    said = [*SAID[:2], *[b"hm"] * 6, *SAID[2:-2], *[b"!", b"Yes"] * 4, b"<end>"]
    said = said[1:] if opened else said
    tokens = [IDS[b"<s>"], *([IDS[b"<think>"]] if opened else [])]

    def thinking() -> Mapping[str, FakeModel]:
        front = [0, *made.tokenize(b"ab", special=False), *tokens]
        return {
            "target": Speaker(said, len(front)),
            "expert": FakeModel(PROXY, 2),
            "base": FakeModel(PROXY, 3),
        }

    made = FakeModel(VOCABULARY, 1)

    def edit(prompts: dict[str, Prompt]) -> dict[str, Prompt]:
        target = prompts["target"]
        markers = find_markers(VOCABULARY, "")
        segments = (*target.segments, Segment(tuple(tokens)))
        prompts["target"] = Prompt(segments, markers=markers)
        return prompts

    options = GenerateOptions(max_tokens=40, expert_in_thoughts=everywhere)
    found = at_every_speed(thinking, options, b"ab", edit=edit)
    for speed, told in found.items():
        assert told.generation.thoughts_bytes == b"hm" * 7 + b" card"
        assert told.generation.text_bytes == b"Yes" + b"!Yes" * 4
        if speed is Speed.TARGET_DRAFT:
            assert told.generation.stats.accepted
