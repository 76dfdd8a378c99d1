"""Drafts beside what else decides an answer: a form, thoughts, models that run side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from capt_local.decode.options import (
    CombineOptions,
    GenerateOptions,
    SampleOptions,
    Speed,
    Structure,
)
from capt_local.errors import Cancelled, NumericalError
from capt_local.prompt.messages import Prompt, Segment
from capt_local.prompt.thinking import markers_of
from capt_local.vocab.vocabulary import Vocabulary
from tests.decode.speculate.answers import DRAFTING, Habit, at_every_speed, lettered, same, tell
from tests.decode.test_constraint import Texts
from tests.decode.test_thoughts import IDS, SAID, VOCABULARY, Speaker
from tests.decode.trios import PROXY, assembly
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
            assert told.generation.text in FORM and told.generation.structured
            drafted += told.generation.tally.drafted
    assert drafted


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("everywhere", [True, False])
def test_thoughts(opened: bool, everywhere: bool) -> None:
    """Thoughts are the target's alone; drafts in front of them and behind do not mix them up."""
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
        markers = markers_of(VOCABULARY, "")
        segments = (*target.segments, Segment(tuple(tokens)))
        prompts["target"] = Prompt(segments, markers=markers)
        return prompts

    options = GenerateOptions(max_tokens=40, expert_in_thoughts=everywhere)
    found = at_every_speed(thinking, options, b"ab", edit=edit)
    for speed, told in found.items():
        assert told.generation.thoughts == b"hm" * 7 + b" card"
        assert told.generation.text == b"Yes" + b"!Yes" * 4
        if speed is Speed.TARGET_DRAFT:
            assert told.generation.tally.accepted


class Many(Habit):
    """One that may run beside others, and counts how many threads it has at each call."""

    def __init__(self, vocabulary: Vocabulary, seed: int, **kinds: Any) -> None:
        super().__init__(vocabulary, seed, **kinds)
        self.threads = self.now = 4
        self.with_threads: set[int] = set()
        self.calls, self.fail_at = 0, 0
        self.error: BaseException = Cancelled("Stopped.")

    def use_threads(self, count: int) -> None:
        super().use_threads(count)
        self.now = count

    def extend(self, tokens: Sequence[int], rows: int = 1) -> np.ndarray:
        self.with_threads.add(self.now)
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.error
        return super().extend(tokens, rows)


def beside(seed: int = 3) -> dict[str, Many]:
    made = {"target": lettered(WORDS), "expert": lettered(OTHERS), "base": lettered(OTHERS)}
    return {role: Many(made[role], seed + at, max_rows=16) for at, role in enumerate(made)}


OPTIONS = GenerateOptions(max_tokens=14, combine=CombineOptions(alphas=(0.5,)))


def test_models_that_run_beside_each_other_give_the_same_answer() -> None:
    plain = tell(models(3, max_rows=16), dataclasses.replace(OPTIONS, speed=Speed.EXACT_STEPS))
    for speed in (Speed.EXACT_STEPS, *DRAFTING):
        made = beside()
        told = tell(made, dataclasses.replace(OPTIONS, speed=speed))
        same(told, plain)
        assert made["target"].with_threads == {4}
        # Several tokens at once each of them reads on all cores.
        assert speed is not Speed.EXACT_STEPS or made["base"].with_threads == {2, 4}
        assert all(model.now == 4 for model in made.values())


@pytest.mark.parametrize("role", ["expert", "base"])
@pytest.mark.parametrize(
    "error", [Cancelled("Stopped."), KeyboardInterrupt(), NumericalError("nan")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_error_in_a_model_that_runs_beside_another(role: str, error: BaseException) -> None:
    stepwise = dataclasses.replace(OPTIONS, speed=Speed.EXACT_STEPS)
    plain = tell(beside(), stepwise)
    for speed in (Speed.EXACT_STEPS, Speed.EXPERT_DRAFT):
        options = dataclasses.replace(OPTIONS, speed=speed)
        whole = beside()
        tell(whole, options)
        for number in range(3, whole[role].calls + 1, 3):
            made = beside()
            trio = assembly(made).trio(OPTIONS)
            made[role].fail_at, made[role].error = number, error
            told = tell(made, options, trio=trio)
            tokens = [step.token for step in told.steps]
            assert tokens == [step.token for step in plain.steps][: len(tokens)]
            assert all(model.now == 4 for model in made.values())
            same(tell(made, stepwise, trio=trio), plain)
